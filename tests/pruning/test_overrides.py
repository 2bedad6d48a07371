"""Overrides: layers that are pruned in another way than the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.pruning import Override, PruneReport

torch.set_num_threads(1)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))


def prune(net: nn.Module, *overrides: Any, sparsity: float = 0.5, **more: Any) -> PruneReport:
    return se.prune(net, sparsity, overrides=overrides, layers=["*"], **more)


def test_each_layer_gets_what_its_override_says() -> None:
    net = model()
    report = prune(
        net,
        {"match": "0", "granularity": "2:4"},
        Override("1", sparsity=0.75, granularity="4x1"),
        {"match": "re:[12]", "sparsity": 0.25},
    )
    rows = {row.name: (row.granularity, row.sparsity) for row in report.layers}
    assert rows == {
        "0": ("2:4", 0.5),
        "1": ("4x1", 0.75),
        "2": ("element", 0.25),
        "3": ("element", 0.5),
    }
    assert bool((net[0].weight.view(-1, 4) != 0).sum(1).eq(2).all())


def test_a_criterion_of_its_own_and_what_it_needs() -> None:
    net, x = model(), torch.randn(64, 32)
    plain, other = model(), model()
    override = {"match": "2", "criterion": "wanda"}
    report = prune(net, override, calibration=[x], recovery=None)
    assert [row.criterion for row in report.layers] == ["", "", "wanda", ""]
    se.prune(plain, 0.5, layers=["*"])
    se.prune(other, 0.5, criterion="wanda", layers=["2"], calibration=[x])
    for i in (0, 1, 3):
        assert torch.equal(net[i].weight, plain[i].weight)
    assert torch.equal(net[2].weight, other[2].weight)
    assert not torch.equal(net[2].weight, plain[2].weight)
    with pytest.raises(UsageError, match="wanda needs calibration inputs"):
        prune(model(), override)


def test_the_allocator_shares_out_the_rest() -> None:
    def scaled() -> nn.Sequential:
        net = model()
        with torch.no_grad():
            for i, layer in enumerate(net):
                layer.weight.copy_(torch.rand(32, 32) ** (i + 1) + 0.01)
        return net

    net, alone = scaled(), scaled()
    report = prune(net, {"match": "0", "sparsity": 0.1}, allocator="lamp", sparsity=0.6)
    found = {row.name: row.sparsity for row in report.layers}
    assert found.pop("0") == pytest.approx(0.1, abs=1e-3)
    assert sum(found.values()) / 3 == pytest.approx(0.6, abs=1e-3)
    se.prune(alone, 0.6, allocator="lamp", layers=["re:[123]"])
    for i in (1, 2, 3):
        assert torch.equal(net[i].weight, alone[i].weight)


def test_all_layers_may_be_overridden() -> None:
    report = prune(model(), {"match": "*", "sparsity": 0.9})
    assert {round(row.sparsity, 2) for row in report.layers} == {0.9}


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ([{"match": "5", "sparsity": 0.1}], "override '5' matches no layer; the nearest are"),
        ([{"match": "0"}], "override '0' changes nothing"),
        ([{"sparsity": 0.5}], "expected a mapping with match, sparsity, granularity, criterion"),
        ([{"match": "0", "amount": 0.5}], "override has no 'amount'; it has match"),
        ([{"match": "0", "sparsity": 1.5}], "sparsity 1.5 is not a fraction"),
        ([{"match": "0", "sparsity": "much"}], "sparsity 'much' is not a fraction"),
        ([{"match": "0", "sparsity": 0.9, "granularity": "2:4"}], "does not fit 2:4"),
        ([{"match": "0", "granularity": "64x1"}], "override '0' has no effect: 0: 64x1 does not"),
        (
            [{"match": "*", "sparsity": 0.1}, {"match": "0", "sparsity": 0.2}],
            "override '0' has no effect: an earlier override matches all of its layers",
        ),
        ({"match": "0", "sparsity": 0.5}, "overrides is no list"),
    ],
)
def test_overrides_without_effect_are_refused(overrides: Any, match: str) -> None:
    net = model()
    before = [layer.weight.clone() for layer in net]
    with pytest.raises(UsageError, match=match) as caught:
        se.prune(net, 0.5, layers=["*"], overrides=overrides)
    assert "\n" not in str(caught.value)
    for layer, weight in zip(net, before, strict=True):
        assert torch.equal(layer.weight, weight)


def test_targets_and_filter_fn_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="filter_fn and layers both choose what is pruned"):
        se.prune(model(), 0.5, layers=["0"], filter_fn=lambda module, name: True)
