"""Costs of whole groups of columns, against least-squares fits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_engine.pruning.criteria.structured_obs import ReaderCosts, removal_order


def problem(out: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(width, 4 * width, generator=source, dtype=torch.float64)
    x += x.roll(1, 0)  # neighbours are correlated
    hessian = x @ x.T + 0.1 * torch.eye(width, dtype=torch.float64)
    return torch.randn(out, width, generator=source, dtype=torch.float64), hessian


def least_error(weight: Tensor, hessian: Tensor, kept: Tensor) -> float:
    """min |(v - w) H^(1/2)|^2 over v with these columns, by solving from scratch."""
    fit = torch.zeros_like(weight)
    block = hessian[kept][:, kept]
    fit[:, kept] = torch.linalg.solve(block, (weight @ hessian)[:, kept].T).T
    difference = fit - weight
    return float((difference @ hessian * difference).sum())


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("readers", [1, 2])
def test_each_cost_is_the_growth_of_the_least_error(size: int, readers: int) -> None:
    groups = 5
    columns = torch.randperm(groups * size).view(groups, size)
    problems = [problem(4 + i, groups * size, seed=i) for i in range(readers)]
    costs = [ReaderCosts(weight, hessian, columns) for weight, hessian in problems]
    removals = removal_order(costs, groups)
    assert sorted(removals.order.tolist()) == list(range(groups))
    before = 0.0
    for i, cost in enumerate(removals.costs.tolist()):
        left = removals.order[i:]

        def error(removed: int, left: Tensor = left) -> float:
            kept = columns[left[left != removed]].flatten()
            return sum(least_error(*one, kept) for one in problems)

        errors = {int(group): error(int(group)) for group in left}
        chosen = int(removals.order[i])
        assert errors[chosen] == pytest.approx(min(errors.values()), rel=1e-8)
        assert cost == pytest.approx(errors[chosen] - before, rel=1e-6)
        before = errors[chosen]


def test_groups_that_go_together_share_their_joint_cost() -> None:
    weight, hessian = problem(3, 120, seed=0)  # two of 120 go between updates
    columns = torch.arange(120)[:, None]
    removals = removal_order([ReaderCosts(weight, hessian, columns)], 120)
    for count in (2, 40, 119):
        kept = torch.ones(120, dtype=torch.bool)
        kept[removals.order[:count]] = False
        if count in (2, 119):  # updates end here
            expected = least_error(weight, hessian, kept.nonzero()[:, 0])
            assert float(removals.costs[:count].sum()) == pytest.approx(expected, rel=1e-6)
