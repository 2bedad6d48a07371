"""The refit of gates once units have been chosen: weighted, and over both matrices together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gates import (
    GateMoments,
    SingleLayer,
    collect_moments,
    find_pairs,
)
from sparse_engine.pruning.gates.pairs import joint_weights
from sparse_engine.pruning.gates.units import unit_removals
from sparse_engine.pruning.gradients.weighted_outputs import WeightedOutputs
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.source import ModelSource
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.unrolled import unrolled
from sparse_engine.structures import find_sites

FEATURES, UNITS, LABELS = 5, 8, 4
UNIT = "unit(keep=1, readers='rnn: head')"


class Tagger(nn.Module):
    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn: Any = getattr(nn, kind)(FEATURES, UNITS, **options)
        for parameter in self.rnn.parameters():
            parameter.data *= 2
        width = (options.get("proj_size") or UNITS) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def inputs() -> list[Tensor]:
    source = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, FEATURES, generator=source) for _ in range(12)]


def moments_of(model: nn.Module) -> list[GateMoments | None]:
    with unrolled(model), torch.no_grad():
        layers = make_plan(model, lambda module, name: True).layers
        items = [Batch((x,), {}, item=x) for x in inputs()]
        pairs, dense = find_pairs(model, layers), DenseWeights(layers)
        return collect_moments(model, pairs, items, dense, WeightedOutputs(), 0, lambda text: None)


@torch.no_grad()
@pytest.mark.parametrize("criterion", ["random", "magnitude", "wanda", "obs"])
def test_the_rows_are_weighted_least_squares_fits(criterion: str) -> None:
    model = Tagger(bidirectional=True).eval()
    dense = copy.deepcopy(model.rnn)
    found = moments_of(model)
    report = se.prune(model, 0.4, UNIT, criterion, "least_squares", calibration=inputs())
    for site, moments in zip(report.sites, found, strict=True):
        assert moments is not None
        end = site.name.removeprefix("rnn.hh_")
        names = [f"{part}_{end}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        target, fitted = (
            torch.cat([getattr(rnn, n).reshape(len(getattr(rnn, n)), -1) for n in names], 1)
            for rnn in (dense, model.rnn)
        )
        columns = [
            *range(FEATURES),
            *(FEATURES + unit for unit in site.kept),
            FEATURES + UNITS,
            FEATURES + UNITS + 1,
        ]
        rows = [gate * UNITS + unit for gate in range(4) for unit in site.kept]
        for i, row in enumerate(rows):
            hessian = moments.hessians[row].double()
            hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
            expected = torch.linalg.solve(
                hessian[columns][:, columns], (hessian @ target[row].double())[columns]
            )
            torch.testing.assert_close(fitted[i].double(), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("criterion", ["random", "magnitude", "activation", "wanda", "obs"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"bidirectional": True}),
        ("LSTM", {"proj_size": 6}),
        ("GRU", {"num_layers": 2, "bidirectional": True}),
        ("RNN", {"bias": False}),
    ],
)
def test_the_outputs_come_closer_to_the_dense_ones(
    kind: str, options: dict[str, Any], criterion: str
) -> None:
    before = torch.stack([Tagger(kind, **options)(x) for x in inputs()])
    errors = []
    for arguments in (
        {"recovery": "bias"},
        {"recovery": "least_squares"},
    ):
        model = Tagger(kind, **options)
        se.prune(model, 0.4, UNIT, criterion, calibration=inputs(), **arguments)
        after = torch.stack([model(x) for x in inputs()])
        errors.append(float((after - before).norm()))
    assert errors[1] < errors[0]


@torch.no_grad()
def test_without_a_recovery_that_fits_the_gates_stay_as_they_are() -> None:
    model = Tagger()
    weight = model.rnn.weight_ih_l0.clone()
    report = se.prune(model, 0.5, UNIT, "wanda", "bias", calibration=inputs())
    rows = [gate * UNITS + unit for gate in range(4) for unit in report.sites[0].kept]
    assert torch.equal(model.rnn.weight_ih_l0, weight[rows])


@torch.no_grad()
def test_costs_of_units_are_weighted_errors_of_all_readers() -> None:
    model = Tagger("GRU").eval()
    with unrolled(model):
        plan = make_plan(model, lambda module, name: True)
        batches = [Batch((x,), {}, item=x) for x in inputs()]
        source = ModelSource(
            model, plan, batches, DenseWeights(plan.layers), Progress(None, len(plan.layers))
        )
        (site,) = find_sites(model, ("unit",), {"rnn": ["head"]})
        removals = unit_removals(source, [site], 0)["rnn.hh_l0"]
        layers = {layer.name: layer for layer in plan.layers}
        readers = [*source.gate_pairs(), SingleLayer(layers["head"])]
        problems = [
            (torch.cat(joint_weights(reader.layers), 1).double(), moments)
            for reader, moments in zip(readers, source.gate_moments(readers, 0), strict=True)
        ]

    def error(removed: list[int]) -> tuple[float, float]:
        """The least weighted error without some units, and the energy of the outputs."""
        total = energy = 0.0
        for (target, moments), first in zip(problems, (FEATURES, 0), strict=True):
            assert moments is not None
            columns = [j for j in range(target.shape[1]) if j - first not in removed]
            for row, hessian in zip(target, moments.hessians.double(), strict=True):
                energy += float(row @ hessian @ row)
                full = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
                fit = torch.zeros_like(row)
                fit[columns] = torch.linalg.solve(full[columns][:, columns], (full @ row)[columns])
                total += float((fit - row) @ full @ (fit - row))
        return total, energy

    removed: list[int] = []
    before = 0.0
    for unit, cost in zip(removals.order.tolist(), removals.costs.tolist(), strict=True):
        left = [other for other in range(UNITS) if other not in removed]
        errors = {other: error([*removed, other]) for other in left}
        assert unit == min(left, key=lambda other: errors[other][0])
        after, energy = errors[unit]
        assert cost == pytest.approx((after - before) / energy, rel=1e-4)
        removed.append(unit)
        before = after
