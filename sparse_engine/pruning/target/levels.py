"""Levels: the ways in which a layer may be pruned, with what each costs and loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from sparse_engine.formats import Bitmask
from sparse_engine.pruning.allocators.base import Candidate, Setting
from sparse_engine.pruning.granularity import Element, Granularity


@dataclass(frozen=True)
class Level:
    """One way to prune a layer.

    Attributes:
        setting: granularity and sparsity.
        format: the format that the cost belongs to, or "dense".
        cost: in the unit of the budget.
        error: squared relative error of the layer's output.
        stored: the pruned weight, without its zeros; None where only counts matter.
        bias: [out], the bias that belongs to it; None where it does not change.
    """

    setting: Setting
    format: str
    cost: float
    error: float
    stored: Bitmask | None = None
    bias: Tensor | None = None


Tables: TypeAlias = Sequence[Sequence[Level]]
"""By layer, its levels: cost ascends and error descends."""


def level_of(candidate: Candidate, format: str, cost: float) -> Level:
    """A level that stores the pruned weight of a candidate."""
    stored = Bitmask.from_dense(candidate.weight)
    return Level(candidate.setting, format, cost, candidate.error**2, stored, candidate.bias)


def affordable(prices: Mapping[Setting, float]) -> dict[Granularity, list[float]]:
    """The settings whose cost can pay for their error, before any error is computed.

    As a rule a setting loses more than one that removes less, of single weights or of the same
    groups. It is left out if such a one costs no more.

    Args:
        prices: by setting, the cost of a layer; also of the dense layer, which is no sparsity of
            single weights.

    Returns:
        By granularity, the sparsities in ascending order; without the dense layer.
    """
    found: dict[Granularity, list[float]] = {}
    for setting, cost in sorted(prices.items(), key=lambda item: item[0].sparsity):
        rivals = (
            price
            for rival, price in prices.items()
            if rival != setting
            and rival.sparsity <= setting.sparsity
            and rival.granularity in (setting.granularity, Element())
        )
        if setting.sparsity and cost < min(rivals, default=math.inf):
            found.setdefault(setting.granularity, []).append(setting.sparsity)
    return found


def worthwhile(levels: Iterable[Level]) -> list[Level]:
    """The levels that no other one dominates: those with the least error for their cost.

    Returns:
        Cost ascends and error descends; the first is the cheapest, the last has the least error.
    """
    kept: list[Level] = []
    for level in sorted(levels, key=lambda level: (level.cost, level.error)):
        if not kept or level.error < kept[-1].error:
            kept.append(level)
    return kept


def total(tables: Tables, picks: Sequence[int]) -> float:
    """Summed cost of one level a layer."""
    return sum(table[pick].cost for table, pick in zip(tables, picks, strict=True))
