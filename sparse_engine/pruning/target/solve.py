"""The levels with the least summed error within a budget, by dynamic programming over the budget.

Frantar and Alistarh 2022, "SPDY: Accurate Pruning with Speedup Guarantees", arXiv:2201.13096;
Kurtic et al. 2023, "ZipLM", arXiv:2302.04089.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from sparse_engine.pruning.target.adjust import refill
from sparse_engine.pruning.target.levels import Tables, total

STEPS = 20_000  # in which the budget is divided; costs are rounded up


def solve(tables: Tables, budget: float, steps: int = STEPS) -> list[int] | None:
    """One level a layer: the least summed error whose summed cost is within the budget.

    Costs are rounded up to whole steps, so that the budget is met; the result is optimal for the
    rounded costs, and what rounding left over is used afterwards.

    Args:
        tables: by layer, its levels, cost ascending and error descending.
        budget: for the summed costs, in their unit.
        steps: in which the budget is divided.

    Returns:
        By layer, the index of its level; None if the budget is out of reach.
    """
    cheapest = [0] * len(tables)
    if total(tables, cheapest) > budget:
        return None
    if budget <= 0:  # all of them cost nothing
        return cheapest
    # least[b]: the least error of the layers so far for b steps or fewer.
    least = torch.zeros(steps + 1, dtype=torch.float64)
    picks: list[Tensor] = []
    for table in tables:
        choices = torch.full((len(table), steps + 1), math.inf, dtype=torch.float64)
        for i, level in enumerate(table):
            cost = math.ceil(level.cost / budget * steps - 1e-9)
            if cost <= steps:
                choices[i, cost:] = least[: steps + 1 - cost] + level.error
        least, pick = choices.min(0)
        picks.append(pick)
    if math.isinf(least[steps]):  # rounding alone leaves no choice
        return refill(tables, cheapest, budget)
    found, left = [], steps
    for table, pick in zip(reversed(tables), reversed(picks), strict=True):
        chosen = int(pick[left])
        found.append(chosen)
        left -= math.ceil(table[chosen].cost / budget * steps - 1e-9)
    return refill(tables, found[::-1], budget)


def brute_force(tables: Tables, budget: float) -> list[int] | None:
    """What `solve` approximates, by trying every combination: the reference for small tables."""
    fitting = (
        picks
        for picks in product(*(range(len(table)) for table in tables))
        if total(tables, picks) <= budget
    )
    best = min(fitting, key=lambda picks: error(tables, picks), default=None)
    return None if best is None else list(best)


def error(tables: Tables, picks: Sequence[int]) -> float:
    """Summed error of one level a layer."""
    return sum(table[pick].error for table, pick in zip(tables, picks, strict=True))
