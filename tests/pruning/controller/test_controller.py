"""The recurrent controller: what its policy learns, exact totals, seeds, and refusals."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from driver_models import batches, mlp
from target_cases import budgets_of, random_tables
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune
from sparse_engine.pruning.allocators import find_allocator
from sparse_engine.pruning.allocators.bounds import Bounds
from sparse_engine.pruning.controller.allocator import ACTIONS, counts
from sparse_engine.pruning.controller.policy import Policy
from sparse_engine.pruning.controller.search import control
from sparse_engine.pruning.target.controlled import control_levels
from sparse_engine.pruning.target.levels import total
from sparse_engine.pruning.target.solve import solve

BEST = (0, 2, 1, 0, 2)


def features() -> Tensor:
    return torch.randn(len(BEST), 3, generator=torch.Generator().manual_seed(0))


def wrong(proposal: Sequence[int]) -> float:
    """How many actions differ from BEST, and a little more."""
    return 0.1 + sum(a != b for a, b in zip(proposal, BEST, strict=True))


def times(count: int) -> Callable[[float], bool]:
    left = iter(range(count))
    return lambda least: next(left, None) is not None


def test_the_policy_learns_what_is_rewarded() -> None:
    policy = Policy(features(), 3, 0.05, torch.Generator().manual_seed(0))
    for _ in range(60):
        proposals = [policy.propose() for _ in range(8)]
        policy.learn(proposals, [-math.log(wrong(proposal)) for proposal in proposals])
    later = [wrong(policy.propose()) for _ in range(20)]
    assert sum(later) / len(later) < 1.0  # random proposals have 3.4


def test_without_a_rate_proposals_stay_random() -> None:
    policy = Policy(features(), 3, 0.0, torch.Generator().manual_seed(0))
    for _ in range(30):
        proposals = [policy.propose() for _ in range(8)]
        policy.learn(proposals, [-wrong(proposal) for proposal in proposals])
    later = [wrong(policy.propose()) for _ in range(100)]
    assert 3.0 < sum(later) / len(later) < 3.8


def test_control_finds_the_best_of_an_enumerable_problem() -> None:
    start = [1] * len(BEST)
    found = control(features(), 3, list, wrong, times(400), start, 0.05, 0)
    assert tuple(found) == BEST
    assert control(features(), 3, list, wrong, times(0), start, 0.05, 0) == start


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_total_of_every_proposal_is_exact(sparsity: float) -> None:
    bounds = Bounds.of([40, 7, 300, 1, 12], sparsity, 0.05)
    rng = random.Random(0)
    for _ in range(50):
        removed = counts([rng.randrange(len(ACTIONS)) for _ in range(5)], sparsity, bounds)
        assert int(removed.sum()) == bounds.total
        assert bool((removed >= bounds.least).all() and (removed <= bounds.most).all())


def test_a_pruned_model_is_as_sparse_as_requested_and_the_seed_decides() -> None:
    found = []
    for seed in (0, 0, 1):
        model = mlp()
        report = prune(
            model,
            0.7,
            criterion="wanda",
            allocator=f"controller(episodes=20, seed={seed})",
            calibration=batches(),
        )
        assert report.sparsity == pytest.approx(0.7, abs=2e-3)
        found.append([layer.sparsity for layer in report.layers])
    assert found[0] == found[1] != found[2]


def test_outputs_are_never_worse_than_those_of_a_uniform_sparsity() -> None:
    errors = {}
    for name in ("uniform", "controller(episodes=40)"):
        model = mlp()
        dense = copy.deepcopy(model)
        prune(model, 0.7, criterion="wanda", allocator=name, calibration=batches())
        with torch.no_grad():
            pairs = [(model(x), dense(x)) for x in batches()]
        errors[name] = sum(float((a - b).square().sum()) for a, b in pairs)
    assert errors["controller(episodes=40)"] <= errors["uniform"]


@pytest.mark.parametrize("options", ["episodes=0", "rate=1.0", "rate=-0.1", f"seed={10**20}"])
def test_options_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(UsageError, match=r"controller: |seed"):
        find_allocator(f"controller({options})")


def test_levels_stay_within_the_budget_and_are_never_worse() -> None:
    better = 0
    for seed in range(6):
        tables = random_tables(random.Random(seed), layers=8)
        budget = budgets_of(tables)[4]
        start = solve(tables, budget)
        assert start is not None

        def evaluate(picks: Sequence[int], tables: object = tables) -> float:
            errors = [t[p].error for t, p in zip(tables, picks, strict=True)]  # type: ignore[call-overload]
            return sum(errors) + 5 * sum(a * b for a, b in itertools.pairwise(errors))

        found = control_levels(tables, start, budget, evaluate, times(150), seed)
        assert total(tables, found) <= budget
        assert evaluate(found) <= evaluate(start)
        better += evaluate(found) < evaluate(start)
    assert better  # the start is the best of the sum over layers, which is not the error here
