"""The search by mutation: budgets, seeds, and that it never makes things worse."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from target_cases import budgets_of, random_tables, table

from sparse_engine.pruning.target.adjust import fit, refill
from sparse_engine.pruning.target.levels import Tables, total
from sparse_engine.pruning.target.search import mutate, search
from sparse_engine.pruning.target.solve import solve


def coupled(tables: Tables) -> Callable[[Sequence[int]], float]:
    """An error that is not a sum over layers: neighbours make each other worse."""

    def evaluate(picks: Sequence[int]) -> float:
        errors = [t[p].error for t, p in zip(tables, picks, strict=True)]
        return sum(errors) + 5 * sum(a * b for a, b in pairwise(errors))

    return evaluate


def steps(count: int) -> Callable[[float], bool]:
    left = [count]

    def proceed(_: float) -> bool:
        left[0] -= 1
        return left[0] >= 0

    return proceed


@pytest.mark.parametrize("seed", range(10))
def test_mutations_stay_within_the_budget(seed: int) -> None:
    rng = random.Random(seed)
    tables = random_tables(rng, layers=6)
    for budget in budgets_of(tables):
        picks = solve(tables, budget)
        for _ in range(50 if picks else 0):
            assert picks is not None
            picks = mutate(tables, picks, budget, rng)
            assert total(tables, picks) <= budget


def test_search_is_never_worse_and_often_better() -> None:
    better = 0
    for seed in range(10):
        tables = random_tables(random.Random(seed), layers=8)
        evaluate = coupled(tables)
        budget = budgets_of(tables)[4]
        start = solve(tables, budget)
        assert start is not None
        found = search(tables, start, budget, evaluate, steps(200))
        assert total(tables, found) <= budget
        assert evaluate(found) <= evaluate(start)
        better += evaluate(found) < evaluate(start)
    assert better >= 3


def test_a_seed_decides_everything() -> None:
    tables = random_tables(random.Random(3), layers=10)
    budget = budgets_of(tables)[4]
    start = solve(tables, budget)
    assert start is not None
    tried: list[list[tuple[int, ...]]] = []
    for seed in (0, 0, 1):
        seen: list[tuple[int, ...]] = []

        def evaluate(picks: Sequence[int], seen: list[tuple[int, ...]] = seen) -> float:
            seen.append(tuple(picks))
            return coupled(tables)(picks)

        search(tables, start, budget, evaluate, steps(30), seed)
        tried.append(seen)
    assert tried[0] == tried[1]
    assert tried[0] != tried[2]


def test_search_ends_where_there_is_only_one_choice() -> None:
    tables = [table((1, 1.0)), table((2, 1.0))]
    assert search(tables, [0, 0], 3.0, lambda picks: 1.0, lambda least: True) == [0, 0]


def test_fit_makes_layers_faster_that_lose_least() -> None:
    tables = [table((1, 9.0), (5, 0.0)), table((1, 1.0), (5, 0.0))]
    assert fit(tables, [1, 1], 10) == [1, 1]
    assert fit(tables, [1, 1], 6) == [1, 0]
    assert fit(tables, [1, 1], 2) == [0, 0]
    assert fit(tables, [1, 1], 1.5) is None


def test_refill_uses_what_is_left() -> None:
    tables = [table((1, 9.0), (5, 0.0)), table((1, 1.0), (5, 0.0))]
    assert refill(tables, [0, 0], 6) == [1, 0]
    assert refill(tables, [0, 0], 10) == [1, 1]
    assert refill(tables, [0, 0], 5.5) == [0, 0]
