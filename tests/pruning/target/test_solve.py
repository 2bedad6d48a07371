"""The dynamic programme against brute force, and what holds for any budget."""

from __future__ import annotations

import random

import pytest
from target_cases import budgets_of, random_tables, table

from sparse_engine.pruning.target.levels import total
from sparse_engine.pruning.target.solve import brute_force, error, solve


@pytest.mark.parametrize("seed", range(20))
def test_whole_costs_are_solved_exactly(seed: int) -> None:
    rng = random.Random(seed)
    tables = random_tables(rng, layers=rng.randint(1, 4), whole=True)
    for budget in budgets_of(tables, whole=True):
        found, expected = solve(tables, budget, steps=budget), brute_force(tables, budget)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert error(tables, found) == pytest.approx(error(tables, expected), abs=1e-12)
            assert total(tables, found) <= budget


@pytest.mark.parametrize("seed", range(20))
def test_any_costs_lose_no_more_than_rounding(seed: int) -> None:
    rng = random.Random(seed)
    tables = random_tables(rng, layers=4)
    for budget in budgets_of(tables):
        found = solve(tables, budget, steps=1000)
        expected = brute_force(tables, budget)
        assert (found is None) == (expected is None)
        if found is None or expected is None:
            continue
        assert total(tables, found) <= budget
        # Each layer's cost is rounded up by less than one step.
        smaller = brute_force(tables, budget * (1 - len(tables) / 1000))
        if smaller is not None:
            assert error(tables, found) <= error(tables, smaller) + 1e-12
        assert error(tables, found) >= error(tables, expected) - 1e-12


def test_a_larger_budget_never_loses_more() -> None:
    tables = random_tables(random.Random(0), layers=6)
    errors = []
    for budget in budgets_of(tables):
        if (found := solve(tables, budget)) is not None:
            errors.append(error(tables, found))
    assert len(errors) > 3
    assert errors == sorted(errors, reverse=True)


def test_a_budget_for_everything_removes_nothing() -> None:
    tables = [table((1, 4.0), (2, 1.0), (5, 0.0)), table((1, 2.0), (4, 0.0))]
    assert solve(tables, 9.0) == [2, 1]
    assert solve(tables, 1.99) is None
    assert solve(tables, 2.0) == [0, 0]


def test_costs_that_only_rounding_makes_too_large() -> None:
    tables = [table((1 / 3, 1.0))] * 3
    assert solve(tables, sum(t[0].cost for t in tables), steps=10) == [0, 0, 0]
