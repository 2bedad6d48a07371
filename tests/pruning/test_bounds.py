"""Floors and ceilings of layers, and exact totals over their groups."""

from __future__ import annotations

import pytest
import torch
from driver_models import mlp, same, state

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune
from sparse_engine.pruning.allocators import find_allocator
from sparse_engine.pruning.allocators.bounds import Bounds, count_lowest, guarded

GROUPS = [1000, 77, 900, 2, 1]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.979, 0.99])
@pytest.mark.parametrize(("least", "most"), [(0.0, None), (0.0, 1.0), (0.05, 0.995)])
def test_every_way_of_sharing_out_meets_the_total(
    sparsity: float, least: float, most: float | None
) -> None:
    if sparsity < least:
        return
    bounds = Bounds.of(GROUPS, sparsity, least, most)
    generator = torch.Generator().manual_seed(0)
    ways = [
        bounds.meet(torch.zeros(5).double(), torch.ones(5).double()),
        bounds.meet(torch.ones(5).double(), torch.rand(5, generator=generator).double() + 1e-3),
        bounds.meet(torch.rand(5, generator=generator).double(), torch.ones(5).double()),
        count_lowest([torch.rand(n, generator=generator) for n in GROUPS], bounds),
    ]
    wanted = min(round(sparsity * sum(GROUPS)), sum(GROUPS) - len(GROUPS))
    for removed in ways:
        assert int(removed.sum()) == bounds.total == wanted
        for count, groups in zip(removed.tolist(), GROUPS, strict=True):
            assert int(least * groups) <= count or count == groups - 1
            assert count <= groups - 1


def test_meet_solves_for_the_common_parameter() -> None:
    bounds = Bounds.of([100, 100, 100], 0.5)
    offset = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    # Shifted by -0.07 each: 23 + 43 + 83 = 149, and one more for the largest remainder.
    removed = bounds.meet(offset, torch.ones(3).double())
    assert removed.sum() == 150
    assert (removed - torch.tensor([23, 43, 83])).abs().max() <= 1
    capped = Bounds.of([100, 100, 100], 0.5, most=0.6).meet(offset, torch.ones(3).double())
    assert capped.tolist() == [35, 55, 60]
    floored = Bounds.of([100, 100, 100], 0.5, least=0.4).meet(offset, torch.ones(3).double())
    assert floored.tolist() == [40, 40, 70]


@pytest.mark.parametrize("allocator", ["uniform", "erk", "lamp"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("max_sparsity=0.4", "sparsity 0.5 of the model is out of reach with max_sparsity=0.4"),
        ("min_sparsity=0.6", "sparsity 0.5 of the model is out of reach with min_sparsity=0.6"),
        ("min_sparsity=0.8, max_sparsity=0.2", "min_sparsity <= max_sparsity"),
        ("min_sparsity=-1", "0 <= min_sparsity"),
        ("max_sparsity=1.5", "max_sparsity <= 1"),
        ("max_sparsity='high'", "is not float"),
    ],
)
def test_hostile_bounds_change_nothing(allocator: str, options: str, message: str) -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(UsageError, match=message):
        prune(model, 0.5, allocator=f"{allocator}({options})")
    assert same(before, state(model))


def test_a_ceiling_that_small_layers_cannot_reach_is_refused() -> None:
    with pytest.raises(UsageError, match=r"max_sparsity=0\.99 and one group kept .* only 0\.9889"):
        Bounds.of(GROUPS, 0.99, most=0.99)


def test_nan_is_no_bound() -> None:
    lamp = type(find_allocator("lamp"))
    with pytest.raises(UsageError, match="min_sparsity"):
        prune(mlp(), 0.5, allocator=lamp(min_sparsity=float("nan")))


@pytest.mark.parametrize("allocator", ["erk", "lamp"])
def test_bounds_hold_in_a_pruned_model(allocator: str) -> None:
    report = prune(mlp(), 0.5, allocator=f"{allocator}(min_sparsity=0.45, max_sparsity=0.55)")
    assert report.sparsity == pytest.approx(0.5, abs=1e-9)
    for row in report.layers:
        groups = row.shape[0] * row.shape[1]
        assert 0.45 - 1 / groups <= row.sparsity <= 0.55 + 1 / groups
    assert report.allocator == f"{allocator}(min_sparsity=0.45, max_sparsity=0.55)"


def test_layers_that_their_ceiling_guards_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    for shift in (0.0, 0.3, 5.0):
        scores = [torch.rand(n, generator=generator) for n in (50, 40, 30)]
        scores[1] += shift
        bounds = Bounds.of([50, 40, 30], 0.6, 0.1, 0.8)
        removed = count_lowest(scores, bounds)
        expected = []
        for i, own in enumerate(scores):
            kept = own.sort().values[removed[i] :]
            others = [
                other.sort().values[bounds.least[j] : removed[j]]
                for j, other in enumerate(scores)
                if j != i
            ]
            is_lower = bool((kept[:, None] < torch.cat(others)[None, :]).any())
            expected.append(is_lower and int(removed[i]) == int(bounds.most[i]))
        assert guarded(scores, bounds, removed) == expected
        assert any(expected) is (shift > 1)


def test_the_report_names_layers_that_the_guard_kept() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight *= 1e-6
    report = prune(model, 0.7, allocator="raw")
    [row] = [row for row in report.layers if row.name == "0"]
    assert int((model[0].weight != 0).sum()) == 4  # 2 % of 240
    assert row.warning == "guard: 4 of 240 groups are kept"
    assert all("guard" not in row.warning for row in prune(mlp(), 0.5, allocator="raw").layers)
