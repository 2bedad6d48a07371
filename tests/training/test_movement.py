"""Movement and soft movement: the scores of autograd through a mask, and weights that come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from learned_cases import batches, network, squared, train
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.training import Movement, Pruner, SoftMovement

RATE, STEPS = 0.3, 12


class Mask(torch.autograd.Function):
    """The mask of scores, whose gradient passes straight through."""

    @staticmethod
    def forward(context: Any, scores: Tensor, keep: Tensor) -> Tensor:
        return keep.to(scores.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def tiles(rows: int, columns: int) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """Spreads one number a block [rows, columns] over a weight of a shape."""

    def spread(grid: Tensor, shape: tuple[int, int]) -> Tensor:
        big = grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return big[: shape[0], : shape[1]]

    return spread


def columns(grid: Tensor, shape: tuple[int, int]) -> Tensor:
    """Spreads the numbers [1, in] of units over the columns that read them."""
    return grid.expand(shape)


Choose = Callable[[int, Tensor], Tensor]


def reference(
    spread: Any, grids: dict[int, tuple[int, int]], choose: Choose, make: Any, penalty: Any
) -> tuple[nn.Module, dict[int, Tensor], int]:
    """Training with masks in the graph: weights and scores are leaves, and both are optimized.

    Returns:
        The model with the weights W (not masked), the scores by layer, and how often a group came
        back.
    """
    model = network()
    scores = {
        i: torch.zeros(grid, dtype=torch.float64, requires_grad=True) for i, grid in grids.items()
    }
    weights = torch.optim.SGD(model.parameters(), lr=RATE)
    of_scores = make(list(scores.values()))
    keeps = {i: torch.ones(grid, dtype=torch.bool) for i, grid in grids.items()}
    returned = 0
    for step, (x, y) in enumerate(batches(STEPS), 1):
        for i, layer in enumerate(model):
            if i in scores:
                shape = tuple(layer.weight.shape)
                mask = spread(Mask.apply(scores[i], keeps[i]), shape)
                x = F.linear(x, layer.weight * mask, layer.bias)
            else:
                x = layer(x)
        loss = (x - y).square().mean() + penalty(scores)
        weights.zero_grad()
        of_scores.zero_grad()
        loss.backward()
        weights.step()
        of_scores.step()
        for i, own in scores.items():
            keep = choose(step, own.detach())
            returned += int((keep & ~keeps[i]).sum())
            keeps[i] = keep
    for i, keep in keeps.items():
        with torch.no_grad():
            model[i].weight *= spread(keep.double(), tuple(model[i].weight.shape))
            if spread is columns:  # in the end the rows that compute removed units go too
                model[i - 2].weight *= keep.T
    return model, {i: own.detach() for i, own in scores.items()}, returned


CASES = {
    "element": (tiles(1, 1), {0: (10, 7), 2: (6, 10)}),
    "4x1": (tiles(4, 1), {0: (3, 7), 2: (2, 10)}),
    "3x4": (tiles(3, 4), {0: (4, 2), 2: (2, 3)}),
    "row": (tiles(1, 100), {0: (10, 1), 2: (6, 1)}),
    "unit(keep=1)": (columns, {2: (1, 10), 4: (1, 6)}),
}


def layers_of(granularity: str) -> dict[str, Any]:
    return {} if granularity.startswith("unit") else {"layers": ("0", "2")}


@pytest.mark.parametrize("granularity", CASES)
def test_movement_is_descent_through_the_mask(granularity: str) -> None:
    spread, grids = CASES[granularity]
    modifier = Movement(
        sparsity=0.5,
        granularity=granularity,
        end=STEPS,
        schedule="linear",
        **layers_of(granularity),
    )

    def choose(step: int, scores: Tensor) -> Tensor:
        removed = round(0.5 * step / STEPS * scores.numel())
        keep = torch.ones(scores.numel(), dtype=torch.bool)
        keep[scores.flatten().argsort(stable=True)[:removed]] = False
        return keep.view_as(scores)

    expected, scores, returned = reference(
        spread, grids, choose, lambda s: torch.optim.SGD(s, lr=1.0), lambda s: 0.0
    )
    model = network()
    pruner = Pruner(model, [modifier], loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=RATE), batches(STEPS))
    if granularity == "element":
        assert returned  # otherwise values that come back are not tested
    for own, (i, value) in zip(modifier._scores, scores.items(), strict=True):
        torch.testing.assert_close(own.view_as(value), value, rtol=0, atol=1e-9)
        torch.testing.assert_close(model[i].weight, expected[i].weight, rtol=0, atol=1e-9)
    pruner.finalize()
    assert pruner.sparsity > 0.4


@pytest.mark.parametrize("granularity", CASES)
def test_soft_movement_is_adam_through_the_mask(granularity: str) -> None:
    spread, grids = CASES[granularity]
    modifier = SoftMovement(
        strength=0.02,
        granularity=granularity,
        threshold=0.4,
        learning_rate=0.1,
        end=STEPS,
        **layers_of(granularity),
    )

    def choose(step: int, scores: Tensor) -> Tensor:
        keep = scores.sigmoid() > 0.4
        if not keep.any():
            keep.view(-1)[scores.argmax()] = True
        return keep

    def penalty(scores: dict[int, Tensor]) -> Any:
        shapes = {0: (10, 7), 2: (6, 10), 4: (2, 6)}
        spreads = [spread(own.sigmoid(), shapes[i]) for i, own in scores.items()]
        return 0.02 * sum(x.sum() for x in spreads) / sum(x.numel() for x in spreads)

    expected, scores, _ = reference(
        spread, grids, choose, lambda s: torch.optim.Adam(s, lr=0.1), penalty
    )
    model = network()
    pruner = Pruner(model, [modifier], loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=RATE), batches(STEPS))
    for own, (i, value) in zip(modifier._scores.values, scores.items(), strict=True):
        torch.testing.assert_close(own.view_as(value), value, rtol=0, atol=1e-9)
        torch.testing.assert_close(model[i].weight, expected[i].weight, rtol=0, atol=1e-9)
    report = pruner.finalize()
    assert 0 < pruner.sparsity < 1
    assert f"{pruner.sparsity:.3f}" == f"{report.events[-1].sparsity:.3f}"


def test_a_stronger_penalty_removes_more() -> None:
    found = []
    for strength in (0.01, 1.0, 100.0):
        model = network()
        modifier = SoftMovement(
            strength=strength, threshold=0.3, learning_rate=0.05, layers=("0", "2")
        )
        pruner = Pruner(model, [modifier], loss=squared)
        train(pruner, torch.optim.SGD(model.parameters(), lr=0.1), batches(40))
        pruner.finalize()
        found.append(pruner.sparsity)
    assert found[0] < found[1] < found[2]
    assert found[2] == pytest.approx(1 - 2 / 130)  # the guard keeps one weight of each layer


def test_with_raw_the_groups_of_all_layers_compete() -> None:
    model = network()
    modifier = Movement(sparsity=0.6, end=10, allocator="raw", layers=("0", "2"))
    pruner = Pruner(model, [modifier], loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=RATE), batches(10))
    report = pruner.finalize()
    assert pruner.sparsity == pytest.approx(0.6, abs=0.01)
    scores = torch.cat(modifier._scores)
    kept = torch.cat([(model[i].weight != 0).flatten() for i in (0, 2)])
    assert scores[kept].min() > scores[~kept].max()
    assert report.sparsity["0"] != report.sparsity["2"]


def test_scores_before_the_first_step_are_refused() -> None:
    for options in ({"schedule": "one_shot"}, {"initial": 0.5, "end": 10}):
        with pytest.raises(UsageError, match="no scores before the first step"):
            Pruner(network(), [Movement(sparsity=0.5, **options)], loss=squared)
    with pytest.raises(UsageError, match="needs an end"):
        Pruner(network(), [Movement(sparsity=0.5)], loss=squared)
