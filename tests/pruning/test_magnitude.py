"""Magnitude: norms of groups, and thresholds that decide how much is removed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driver_models import batches, mlp, same, state

from sparse_engine.errors import UsageError
from sparse_engine.pruning import Block, Element, Inputs, parse_granularity, prune
from sparse_engine.pruning.criteria import find_criterion


def keep_of(criterion: str, weight: torch.Tensor, granularity: Any, sparsity: float = 0.0) -> Any:
    return find_criterion(criterion).prune(
        weight, Inputs(), granularity, sparsity, torch.Generator()
    )[1]


@pytest.mark.parametrize("p", [1, 2])
def test_groups_are_ordered_by_their_norm(p: int) -> None:
    # The first pair has the larger L2 norm, the second the larger L1 norm.
    weight = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
    keep = keep_of(f"magnitude(p={p})", weight, Block(1, 2), 0.5)
    assert keep[0].tolist() == (
        [True, True, False, False] if p == 2 else [False, False, True, True]
    )


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("text", ["element", "4x1", "3x2", "1xall"])
@pytest.mark.parametrize("option", ["threshold", "sigma"])
def test_exactly_the_groups_below_the_threshold_go(option: str, text: str, p: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(11, 14) * torch.rand(11, 1)
    weight[0, :3] = 0
    granularity = parse_granularity(text)
    deviation = float(weight[weight != 0].double().std(correction=0))
    threshold = 0.9 * deviation if option == "sigma" else 0.4
    value = 0.9 if option == "sigma" else threshold
    keep = keep_of(f"magnitude(p={p}, {option}={value})", weight, granularity)
    # The same with a loop over elements: which group is each one in, and what is its norm?
    sums: dict[tuple[int, int], list[float]] = {}
    height = {"4x1": 4, "3x2": 3}.get(text, 1)
    width = {"3x2": 2, "1xall": 14}.get(text, 1)
    for i in range(11):
        for j in range(14):
            sums.setdefault((i // height, j // width), []).append(abs(float(weight[i, j])) ** p)
    norms = {group: (sum(v) / len(v)) ** (1 / p) for group, v in sums.items()}
    for i in range(11):
        for j in range(14):
            assert bool(keep[i, j]) == (norms[i // height, j // width] >= threshold)


def test_a_threshold_above_everything_leaves_one_group() -> None:
    weight = torch.tensor([[1.0, 3.0, 2.0]])
    assert keep_of("magnitude(threshold=10.0)", weight, Element()).tolist() == [
        [False, True, False]
    ]
    zeros = torch.zeros(2, 3)
    assert int(keep_of("magnitude(sigma=1.0)", zeros, Element()).sum()) == 6


def test_layers_lose_what_their_weights_decide() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(3)
    dense = [model[i].weight.clone() for i in (0, 2)]
    report = prune(model, criterion="magnitude(threshold=0.1)")
    assert report.criterion == "magnitude(threshold=0.1)"
    for i, weight in zip((0, 2), dense, strict=True):
        assert torch.equal(model[i].weight, weight * (weight.abs() >= 0.1))
    assert report.layers[0].sparsity < report.layers[1].sparsity


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "magnitude(p=3)"}, "p=3 is not 1 or 2"),
        ({"criterion": "magnitude(threshold=0)"}, "threshold=0.0 is not above 0"),
        ({"criterion": "magnitude(sigma=-1.0)"}, "sigma=-1.0 is not above 0"),
        ({"criterion": "magnitude(threshold=1e999)"}, "threshold=inf"),
        ({"criterion": "magnitude(threshold=1.0, sigma=1.0)"}, "not both"),
        ({"criterion": "magnitude(threshold=1.0)", "sparsity": 0.5}, "leave out sparsity 0.5"),
        ({"criterion": "magnitude(sigma=1.0)", "granularity": "2:4"}, "leave out granularity 2:4"),
        ({"criterion": "magnitude(sigma=1.0)", "allocator": "erk"}, "nothing to share out"),
        (
            {"criterion": "magnitude(sigma=1.0)", "allocator": "uniform(max_sparsity=0.9)"},
            "nothing to share out",
        ),
        ({"criterion": "magnitude"}, "no sparsity given"),
    ],
)
def test_wrong_options_change_nothing(arguments: dict[str, Any], message: str) -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(UsageError, match=message):
        prune(model, calibration=batches(), **arguments)
    assert same(before, state(model))
