"""The sensitivity allocator against an exhaustive search, and in pruned models."""

from __future__ import annotations

import itertools

import pytest
import torch
from dense_models import FakeDense, counts, layers_of
from driver_models import batches, mlp
from torch import nn

from sparse_engine.pruning import Block, prune
from sparse_engine.pruning.allocators import find_allocator
from sparse_engine.pruning.allocators.bounds import Bounds
from sparse_engine.pruning.allocators.sensitivity import GRID, Point, convex, equal_slopes, grid


def test_equal_slopes_against_all_possibilities() -> None:
    """On convex curves the greedy choice is the best of all."""
    generator = torch.Generator().manual_seed(0)
    groups = [7, 5, 9]
    for total in (0, 1, 4, 10, 17):
        bounds = Bounds.of(groups, total / sum(groups), most=1.0)
        assert bounds.total == total
        slopes = [torch.rand(n - 1, generator=generator).sort().values for n in groups]
        curves = [[0.0, *s.cumsum(0).tolist()] for s in slopes]
        hulls = [convex([Point(i, e) for i, e in enumerate(curve)], 0) for curve in curves]
        removed = equal_slopes(hulls, bounds).tolist()
        assert sum(removed) == total
        best = min(
            sum(curve[n] for curve, n in zip(curves, choice, strict=True))
            for choice in itertools.product(*(range(n) for n in groups))
            if sum(choice) == total
        )
        found = sum(curve[n] for curve, n in zip(curves, removed, strict=True))
        assert found == pytest.approx(best, rel=1e-6)


def test_the_hull_lies_below_the_curve_and_its_slopes_ascend() -> None:
    errors = [0.0, 3.0, 2.0, 2.5, 6.0, 6.1, 20.0]  # one falls, which is taken as constant
    hull = convex([Point(i, e) for i, e in enumerate(errors)], 0)
    rising = [max(errors[: i + 1]) for i in range(len(errors))]
    for a, b in itertools.pairwise(hull):
        for i in range(a.removed, b.removed + 1):
            line = a.error + (i - a.removed) * (b.error - a.error) / (b.removed - a.removed)
            assert line <= rising[i] + 1e-12
    slopes = [(b.error - a.error) / (b.removed - a.removed) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)
    assert [hull[0].removed, hull[-1].removed] == [0, 6]


def test_the_grid_holds_the_bounds() -> None:
    bounds = Bounds.of([1000, 3, 1], 0.5, least=0.25, most=0.93)
    assert grid(bounds, 0) == [250, *(round(1000 * s) for s in GRID if 0.25 < s < 0.93), 930]
    assert grid(bounds, 1) == [1, 2]
    assert grid(bounds, 2) == []


@pytest.mark.parametrize("options", ["", "(min_sparsity=0.3, max_sparsity=0.7)"])
def test_an_insensitive_layer_loses_more(options: str) -> None:
    layers = layers_of(deaf=(20, 20), keen=(20, 20), plain=(40, 20))
    dense = FakeDense(layers)
    dense.given_curves = {"deaf": lambda s: 0.1 * s, "keen": lambda s: 2 * s, "plain": lambda s: s}
    removed = counts(find_allocator(f"sensitivity{options}"), dense, 0.5)
    assert sum(removed.values()) == 800
    assert removed["deaf"] == (0.7 if options else 0.98) * 400
    if options:
        assert removed["keen"] >= 0.3 * 400
    assert removed["keen"] / 400 < removed["plain"] / 800 < removed["deaf"] / 400


@pytest.mark.parametrize("granularity", ["element", "4x1"])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "fisher", "sparsegpt", "obs"])
def test_the_sum_of_errors_is_less_than_that_of_uniform(criterion: str, granularity: str) -> None:
    def run(allocator: str) -> float:
        model = mlp()
        with torch.no_grad():  # most of the first layer hardly matters
            model[0].weight[:, 4:] *= 0.05
        prune(model, 0.6, granularity, criterion, None, batches(), allocator)
        groups = Block(4, 1) if granularity == "4x1" else Block(1, 1)
        assert sum(
            int((groups.group_scores(model[i].weight.abs()) == 0).sum()) for i in (0, 2)
        ) == round(0.6 * sum(groups.groups(*model[i].weight.shape) for i in (0, 2)))
        return errors(model)

    def errors(model: nn.Sequential) -> float:
        """The sum that the allocator makes small, from the dense inputs of each layer."""
        dense = mlp()
        with torch.no_grad():
            dense[0].weight[:, 4:] *= 0.05
            x, total = torch.cat(batches()), 0.0
            for i in (0, 2):
                wanted = x @ dense[i].weight.T
                got = x @ model[i].weight.T
                total += float((got - wanted).square().sum() / wanted.square().sum())
                x = (wanted + dense[i].bias).relu()
        return total

    assert run("sensitivity") < 1.02 * run("uniform")
