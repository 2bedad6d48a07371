"""How many groups of each site are kept, against the definitions of the allocators."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import find_allocator
from sparse_engine.pruning.cutting.counts import check_allocator, counts
from sparse_engine.pruning.cutting.ranking import Ranking
from sparse_engine.structures import Head, Site, Unit

KEEP = {"head": Head(), "unit": Unit(keep=2)}


def ranking(
    name: str,
    costs: list[float],
    kind: str = "unit",
    even: str = "",
    quota: int | None = None,
    layers: int = 1,
) -> Ranking:
    values = torch.tensor(costs, dtype=torch.float64)
    site = Site(name, kind, len(costs), {}, {}, even=even, layers=layers)
    return Ranking(site, torch.arange(len(costs)), values, values.cumsum(0), quota)


def kept(
    rankings: list[Ranking], sparsity: float, allocator: str, fixed: dict[str, float] | None = None
) -> list[int]:
    found = counts(rankings, KEEP, sparsity, find_allocator(allocator), fixed)
    return [size.kept for size in found]


CHEAP = ranking("a", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
DEAR = ranking("b", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_uniform_keeps_the_same_share() -> None:
    assert kept([CHEAP, DEAR], 0.5, "uniform") == [3, 3]
    assert kept([CHEAP, ranking("h", [1.0] * 4, "head")], 0.99, "uniform") == [2, 1]


def test_floors_are_reported() -> None:
    def at_floor(sparsity: float, allocator: str) -> list[bool]:
        found = counts([CHEAP, DEAR], KEEP, sparsity, find_allocator(allocator))
        return [size.at_floor for size in found]

    assert at_floor(2 / 3, "uniform") == [False, False]  # two of six are what is asked for
    assert at_floor(0.9, "uniform") == [True, True]
    assert at_floor(0.5, "raw") == [True, False]


def test_raw_removes_the_cheapest_above_the_floor() -> None:
    assert kept([CHEAP, DEAR], 1 / 3, "raw") == [2, 6]
    assert kept([CHEAP, DEAR], 0.5, "raw") == [2, 4]  # the floor of the first is reached
    late = ranking("c", [9.0, 0.1, 0.1, 0.1, 0.1, 0.1])  # what follows is no cheaper
    assert kept([late, DEAR], 0.25, "raw") == [6, 3]


def test_lamp_compares_shares_of_what_is_left() -> None:
    assert kept([CHEAP, DEAR], 0.5, "lamp") == [3, 3]  # the same curves but for their scale
    steep = ranking("c", [1e-3, 1e-3, 1e-3, 1.0, 2.0, 3.0])
    scores = []
    for one in (steep, DEAR):
        costs = one.costs.tolist()
        scores.append([cost / sum(costs[i:]) for i, cost in enumerate(costs)])
    lowest = sorted(product((0, 1), range(6)), key=lambda at: scores[at[0]][at[1]])[:4]
    lost = [sum(site == i for site, _ in lowest) for i in (0, 1)]
    assert kept([steep, DEAR], 1 / 3, "global") == [6 - lost[0], 6 - lost[1]]


def test_sensitivity_has_the_least_sum_of_errors() -> None:
    rankings = [
        ranking("a", [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]), ranking("b", [0.3, 0.3, 0.5, 0.5, 2.0, 2.0])
    ]  # fmt: skip
    # Errors are measured at some counts; the floor lies at one of them.
    found = kept(rankings, 0.5, "sensitivity")
    assert sum(found) == 6

    def error(lost: tuple[int, int]) -> float:
        return sum(float(r.costs[:n].sum()) for r, n in zip(rankings, lost, strict=True))

    possible = [(a, 6 - a) for a in range(2, 5)]
    assert error((6 - found[0], 6 - found[1])) == pytest.approx(min(map(error, possible)))


def test_bounds_of_allocators() -> None:
    assert kept([CHEAP, DEAR], 1 / 3, "raw(max_sparsity=0.5)") == [3, 5]
    assert kept([CHEAP, DEAR], 1 / 3, "raw(min_sparsity=0.17)") == [3, 5]
    assert kept([CHEAP, DEAR], 1 / 3, "sensitivity(max_sparsity=0.5)") == [3, 5]
    tens = [ranking(name, torch.rand(10).tolist()) for name in "ab"]
    assert sum(kept(tens, 0.95, "raw")) == 4  # the floors of both


def test_sites_of_their_own_take_no_part() -> None:
    assert kept([CHEAP, DEAR], 1 / 3, "raw", {"a": 0.0}) == [6, 4]
    assert kept([CHEAP, DEAR], 1 / 3, "uniform", {"a": 0.5}) == [3, 4]
    assert kept([CHEAP, DEAR], 1 / 3, "raw", {"a": 0.0, "b": 0.5}) == [6, 3]


def test_a_criterion_may_decide() -> None:
    rankings = [ranking("a", [1.0] * 6, quota=1), ranking("b", [1.0] * 6, quota=6)]
    assert kept(rankings, 0.0, "uniform") == [5, 2]


def test_even_sites_lose_equally_many() -> None:
    even = [ranking("a", [0.1] * 8, even="e"), ranking("b", [1.0] * 8, even="e"), DEAR]
    found = kept(even, 0.25, "raw")
    assert found[0] == found[1]


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_groups_of_several_layers_count_as_often(sparsity: float, seed: int) -> None:
    """Of all choices with as many heads removed, the one with the least summed cost is taken."""
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(5, 4, generator=generator).sort(1).values.tolist()
    rankings = [
        ranking("shared", costs[0], "head", layers=6),
        ranking("alone", costs[1], "head"),
        ranking("other", costs[2], "head", layers=2),
        *(ranking(f"even{i}", costs[3 + i], "head", even="e") for i in (0, 1)),
    ]
    sizes = [6, 1, 2, 1, 1]
    found = kept(rankings, sparsity, "raw")
    assert found[3] == found[4]

    def summed(removed: tuple[int, ...]) -> float:
        return sum(size * sum(own[:n]) for size, own, n in zip(sizes, costs, removed, strict=True))

    gone = tuple(4 - count for count in found)
    total = sum(n * size for n, size in zip(gone, sizes, strict=True))
    assert abs(total - sparsity * 4 * sum(sizes)) <= max(sizes) / 2 + 0.5
    rivals = [
        (*of, of[-1])
        for of in product(range(4), repeat=4)
        if sum(n * size for n, size in zip((*of, of[-1]), sizes, strict=True)) == total
    ]
    assert summed(gone) == pytest.approx(min(map(summed, rivals)))


def test_other_allocators_are_refused() -> None:
    for name, why in (("erk", "shapes"), ("owl", "outliers")):
        with pytest.raises(UsageError, match=why):
            check_allocator(find_allocator(name))


def test_infinite_costs_are_removed_last() -> None:
    values: Tensor = torch.tensor([0.0, 0.0, 0.0, 0.0])
    zero = Ranking(Site("z", "head", 4, {}, {}), torch.arange(4), values.double())
    assert kept([zero], 0.5, "lamp") == [2]
