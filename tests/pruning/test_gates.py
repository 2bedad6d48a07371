"""Joint pruning of the two matrices of recurrent layers: moments, scores, and whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from sparse_engine.ops.reference import recurrent_step
from sparse_engine.pruning import PruneReport, prune
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gates import GateMoments, collect_moments, find_pairs
from sparse_engine.pruning.gates.costs import GateCosts
from sparse_engine.pruning.gradients.loss import GivenLoss
from sparse_engine.pruning.granularity import parse_granularity
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.unrolled import unrolled

FEATURES, UNITS, LENGTH, SEQUENCES = 4, 4, 5, 3


def network(kind: str = "LSTM", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(nn, kind)(FEATURES, UNITS, **options).requires_grad_(False)


def inputs(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(LENGTH, SEQUENCES, FEATURES, generator=generator) for _ in range(count)]


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss whose gradients differ from step to step."""
    return (model(batch)[0] * torch.linspace(0.1, 2, UNITS)).square().sum()


def moments_of(model: nn.Module, batches: list[Tensor]) -> list[GateMoments]:
    with unrolled(model), torch.no_grad():
        layers = make_plan(model, lambda module, name: True).layers
        pairs = find_pairs(model, layers)
        items = [Batch((x,), {}, item=x) for x in batches]
        dense = DenseWeights(layers)
        loss = GivenLoss(squares)
        found = collect_moments(model, pairs, items, dense, loss, 0, lambda text: None)
    assert None not in found
    return [moments for moments in found if moments is not None]


def expected_hessians(model: Any, batches: list[Tensor], suffix: str = "l0") -> Tensor:
    """H of every row in float64, with the steps written out."""
    weights = [getattr(model, f"{part}_{suffix}").double() for part in ("weight_ih", "weight_hh")]
    biases = [getattr(model, f"{part}_{suffix}").double() for part in ("bias_ih", "bias_hh")]
    rows = len(weights[0])
    total = torch.zeros(rows, FEATURES + UNITS + 2, FEATURES + UNITS + 2, dtype=torch.float64)
    for batch in batches:
        h = c = torch.zeros(SEQUENCES, UNITS, dtype=torch.float64)
        outputs, seen = [], []
        order = range(LENGTH)
        for t in reversed(order) if suffix.endswith("reverse") else order:
            x = batch[t].double()
            a = (x @ weights[0].T + biases[0]).requires_grad_()
            b = (h @ weights[1].T + biases[1]).requires_grad_()
            a.retain_grad()
            b.retain_grad()
            seen.append((x, h.detach(), a, b))
            state = (h, c) if model.mode == "LSTM" else (h,)
            h, *rest = recurrent_step(model.mode, a, b, state)
            c = rest[0] if rest else c
            outputs.append(h)
        scale = torch.linspace(0.1, 2, UNITS, dtype=torch.float64)
        (torch.stack(outputs) * scale).square().sum().backward()
        for x, state_h, a, b in seen:
            wa, wb = a.grad.abs().sqrt(), b.grad.abs().sqrt()  # type: ignore[union-attr]
            for r in range(rows):
                z = torch.cat(
                    [x * wa[:, r : r + 1], state_h * wb[:, r : r + 1], wa[:, [r]], wb[:, [r]]], 1
                )
                total[r] += z.T @ z
    return total


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_moments_against_the_steps_written_out(kind: str) -> None:
    model = network(kind)
    (moments,) = moments_of(model, inputs())
    assert moments.set_size == 1
    expected = expected_hessians(model, inputs())
    torch.testing.assert_close(moments.hessians.double(), expected, rtol=1e-4, atol=1e-4)
    assert moments.scales().tolist() == [1] * len(expected)


def test_the_reverse_direction_pairs_states_with_their_steps() -> None:
    model = network(bidirectional=True)

    def one_direction(module: nn.Module, batch: Tensor) -> Tensor:
        return (module(batch)[0][..., UNITS:] * torch.linspace(0.1, 2, UNITS)).square().sum()

    with unrolled(model), torch.no_grad():
        layers = make_plan(model, lambda module, name: True).layers
        pairs = find_pairs(model, layers)
        assert [(p.ih.name, p.hh.name, p.is_reverse) for p in pairs] == [
            ("ih_l0", "hh_l0", False),
            ("ih_l0_reverse", "hh_l0_reverse", True),
        ]
        items = [Batch((x,), {}, item=x) for x in inputs()]
        forward, reverse = collect_moments(
            model, pairs, items, DenseWeights(layers), GivenLoss(one_direction), 0, lambda t: None
        )
    assert forward is not None
    assert reverse is not None
    assert not forward.hessians.any()  # the loss does not depend on it
    expected = expected_hessians(model, inputs(), "l0_reverse")
    torch.testing.assert_close(reverse.hessians.double(), expected, rtol=1e-4, atol=1e-4)


def test_rows_share_an_h_where_memory_is_short() -> None:
    torch.manual_seed(0)
    x, h = torch.randn(20, 2), torch.randn(20, 3)
    a, b = torch.rand(20, 7), torch.rand(20, 7)
    moments = GateMoments(7, 2, 3, 2, max_elements=3 * 7 * 7)
    assert (moments.set_size, len(moments.hessians)) == (3, 3)
    moments.add(x, h, a, b)
    for index, rows in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        wa, wb = (part[:, rows].mean(1, keepdim=True).sqrt() for part in (a, b))
        z = torch.cat([x * wa, h * wb, wa, wb], 1)
        torch.testing.assert_close(moments.hessians[index], z.T @ z)
    total = (a + b).sum(0)
    expected = torch.cat([part / part.mean() for part in total.split(3)])
    torch.testing.assert_close(moments.scales(), expected)


def test_rows_that_nothing_depends_on_weigh_nothing() -> None:
    moments = GateMoments(2, 1, 1, 0)
    moments.add(torch.ones(3, 1), torch.ones(3, 1), torch.zeros(3, 2), torch.zeros(3, 2))
    assert moments.scales().tolist() == [0, 0]
    costs = GateCosts(torch.ones(2, 2), torch.zeros(2, 0), moments, 1)
    fitted, score = costs.of(torch.ones(2, 2, dtype=torch.bool))
    assert not score.any()
    assert fitted.isfinite().all()


def test_scores_are_what_removals_cost() -> None:
    torch.manual_seed(0)
    rows, features, units = 6, 3, 2
    moments = GateMoments(rows, features, units, 2, max_elements=3 * 7 * 7)
    moments.add(
        torch.randn(40, features),
        torch.randn(40, units),
        torch.rand(40, rows),
        torch.rand(40, rows),
    )
    weight, biases = torch.randn(rows, features + units), torch.randn(rows, 2)
    costs = GateCosts(weight, biases, moments, 1)
    keep = torch.rand(rows, features + units) < 0.7
    _, score = costs.of(keep)
    target = torch.cat([weight, biases], 1).double()

    def loss(row: int, support: Tensor) -> float:
        hessian = moments.hessians[row // moments.set_size].double()
        hessian = hessian + 1e-2 * hessian.diagonal().mean() * torch.eye(len(hessian))
        columns = torch.cat([support, torch.ones(2, dtype=torch.bool)]).nonzero()[:, 0]
        v = torch.zeros_like(target[row])
        rhs = (target[row] @ hessian)[columns]
        v[columns] = torch.linalg.solve(hessian[columns][:, columns], rhs)
        difference = v - target[row]
        return float(moments.scales()[row] * (difference @ hessian @ difference))

    for row, column in keep.nonzero().tolist():
        fewer = keep[row].clone()
        fewer[column] = False
        increase = loss(row, fewer) - loss(row, keep[row])
        assert float(score[row, column]) == pytest.approx(increase, rel=1e-3, abs=1e-5)


class Tagger(nn.Module):
    """A recurrent layer of any kind, and a head."""

    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = network(kind, batch_first=False, **options)
        width = (2 if options.get("bidirectional") else 1) * (options.get("proj_size") or UNITS)
        self.head = nn.Linear(width, 6).requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.rnn(x)[0])}


class CellTagger(nn.Module):
    """A cell that the model runs step by step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = network(kind)
        self.head = nn.Linear(UNITS, 6).requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        state: Any = None
        outputs = []
        for step in x:
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return {"logits": self.head(torch.stack(outputs))}


def joint(model: nn.Module, sparsity: float | None = 0.5, **kwargs: Any) -> PruneReport:
    arguments: dict[str, Any] = {"criterion": "obs", "recovery": "least_squares"}
    return prune(
        model,
        sparsity,
        calibration=inputs(),
        filter_fn=lambda module, name: "head" not in name,
        **arguments | kwargs,
    )


def is_joint(report: PruneReport) -> bool:
    return all("pruned together with" in row.note for row in report.layers)


KINDS = [
    ("LSTM", {}),
    ("GRU", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {"bias": False}),
    ("GRU", {"bidirectional": True, "num_layers": 2}),
]


@pytest.mark.parametrize("granularity", ["element", "4x1", "1x4", "3x2", "2:4"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_counts_are_exact_over_both_matrices(
    kind: str, options: dict[str, Any], granularity: str
) -> None:
    model = Tagger(kind, **options)
    sparsity = None if granularity == "2:4" else 0.5
    report = joint(model, sparsity, granularity=granularity)
    assert is_joint(report)
    by_name = {row.name: row for row in report.layers}
    for name, row in by_name.items():
        if ".ih" not in name:
            continue
        other = by_name[name.replace(".ih", ".hh")]
        suffix = name.partition(".ih_")[2]
        parts = [getattr(model.rnn, f"weight_{part}_{suffix}") for part in ("ih", "hh")]
        groups = parse_granularity("element" if granularity == "2:4" else granularity)
        kept = groups.group_scores((torch.cat(parts, 1) != 0).float()) > 0
        assert int(kept.sum()) == kept.numel() // 2
        assert row.error_after == other.error_after
        assert row.error_after is not None
        assert row.error_before is not None
        assert row.error_after < row.error_before
    assert torch.isfinite(model(inputs()[0])["logits"]).all()


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_are_pruned_as_networks_are(kind: str) -> None:
    cell, whole = CellTagger(kind), Tagger(kind.removesuffix("Cell"))
    with torch.no_grad():
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(whole.rnn, f"{part}_l0").copy_(getattr(cell.cell, part))
        whole.head.load_state_dict(cell.head.state_dict())
    assert is_joint(joint(cell))
    joint(whole)
    for part in ("weight_ih", "weight_hh"):
        expected: Tensor = getattr(whole.rnn, f"{part}_l0")
        torch.testing.assert_close(getattr(cell.cell, part), expected, rtol=1e-3, atol=1e-4)


def test_a_budget_for_each_row() -> None:
    model = Tagger()
    joint(model, criterion="obs(budget='row')")
    kept = torch.cat([model.rnn.weight_ih_l0, model.rnn.weight_hh_l0], 1) != 0
    assert kept.sum(1).tolist() == [(FEATURES + UNITS) // 2] * (4 * UNITS)


def test_zeros_stay_zero_and_count_first() -> None:
    model = Tagger()
    with torch.no_grad():
        model.rnn.weight_hh_l0[:, 1] = 0
    joint(model)
    weights = model.rnn.weight_ih_l0, model.rnn.weight_hh_l0
    assert not weights[1][:, 1].any()
    assert sum(int((w == 0).sum()) for w in weights) == sum(w.numel() for w in weights) // 2


def test_packed_sequences() -> None:
    class Packed(Tagger):
        def forward(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return {"logits": self.head(self.rnn(packed)[0].data)}

    model = Packed(bidirectional=True)
    items = [(x, torch.tensor([LENGTH, 2, 3])) for x in inputs()]
    report = prune(
        model, 0.5, criterion="obs", calibration=items, filter_fn=lambda m, n: "rnn" in n
    )
    assert is_joint(report)


def test_the_outputs_stay_closer_than_with_matrices_pruned_apart() -> None:
    errors = []
    for options in ({"criterion": "obs"}, {"criterion": "sparsegpt"}):
        model = Tagger()
        expected = torch.stack([model(x)["logits"] for x in inputs()])
        joint(model, 0.5, **options)
        errors.append(
            float((torch.stack([model(x)["logits"] for x in inputs()]) - expected).norm())
        )
    assert errors[0] < errors[1]


@pytest.mark.parametrize("granularity", ["1xall", "4x3"])
def test_groups_that_do_not_fit_both_matrices_are_pruned_apart(granularity: str) -> None:
    torch.manual_seed(0)
    model = Tagger()
    model.rnn = nn.LSTM(6, UNITS).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(LENGTH, SEQUENCES, 6, generator=generator) for _ in range(6)]
    report = prune(
        model,
        0.5,
        granularity,
        "obs",
        calibration=batches,
        filter_fn=lambda module, name: "rnn" in name,
    )
    assert len(report.layers) == 2
    assert not any("together" in row.note for row in report.layers)


def test_an_error_restores_both_matrices() -> None:
    model = Tagger()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def interrupt(done: int, total: int, text: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        joint(model, progress=interrupt)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
