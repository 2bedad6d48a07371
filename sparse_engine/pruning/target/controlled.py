"""Improves a choice of levels by a recurrent policy that learns from the errors of its proposals.

It is an alternative to `search`, with the same arguments. Each layer moves by some levels from the
start; then layers are made faster until the budget is met, and what is left of it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_engine.pruning.controller.search import control
from sparse_engine.pruning.target.adjust import fit, refill
from sparse_engine.pruning.target.levels import Tables

MOVES = (-3, -2, -1, 0, 1, 2, 3)  # levels from that of the start
RATE = 0.02  # of learning


def control_levels(
    tables: Tables,
    start: Sequence[int],
    budget: float,
    evaluate: Callable[[Sequence[int]], float],
    proceed: Callable[[float], bool],
    seed: int = 0,
) -> list[int]:
    """The best choice that a policy proposed; see `search` for the arguments."""

    def make(proposal: Sequence[int]) -> list[int]:
        moved = [
            min(max(pick + MOVES[action], 0), len(table) - 1)
            for pick, action, table in zip(start, proposal, tables, strict=True)
        ]
        fitted = fit(tables, moved, budget)
        return list(start) if fitted is None else refill(tables, fitted, budget)

    features = _features(tables, start)
    return control(features, len(MOVES), make, evaluate, proceed, list(start), RATE, seed)


def _features(tables: Tables, start: Sequence[int]) -> Tensor:
    """Of each layer its place, the cost and error at the start, and those of its levels around."""
    rows = []
    for index, (table, pick) in enumerate(zip(tables, start, strict=True)):
        around = [table[min(max(pick + move, 0), len(table) - 1)] for move in (-1, 0, 1)]
        values = [value for level in around for value in (level.cost, level.error)]
        rows.append([index / len(tables), *(math.log(max(value, 1e-12)) for value in values)])
    return torch.tensor(rows)
