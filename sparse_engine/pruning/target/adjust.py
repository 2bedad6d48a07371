"""Small changes to a choice of levels: down to a budget, and up to it."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_engine.pruning.target.levels import Tables, total


def fit(tables: Tables, picks: Sequence[int], budget: float) -> list[int] | None:
    """Make layers faster until a budget is met, those first that lose least for what they save.

    Args:
        tables: by layer, its levels, cost ascending and error descending.
        picks: by layer, the index of its level.
        budget: for the summed costs.

    Returns:
        By layer, the index of its level; None if the budget is out of reach.
    """
    fitted = list(picks)
    while total(tables, fitted) > budget:
        layers = [layer for layer in range(len(tables)) if fitted[layer]]
        if not layers:
            return None

        def loss(layer: int) -> float:
            now, faster = (tables[layer][fitted[layer] - i] for i in (0, 1))
            return (faster.error - now.error) / (now.cost - faster.cost)

        fitted[min(layers, key=loss)] -= 1
    return fitted


def refill(tables: Tables, picks: Sequence[int], budget: float) -> list[int]:
    """Use what a choice leaves of the budget, for those layers first that gain most for a cost.

    Args:
        tables: by layer, its levels, cost ascending and error descending.
        picks: by layer, the index of its level; within the budget.
        budget: for the summed costs.
    """
    filled = list(picks)
    while True:
        left = budget - total(tables, filled)
        gains = {}
        for layer, table in enumerate(tables):
            if filled[layer] + 1 < len(table):
                now, slower = table[filled[layer]], table[filled[layer] + 1]
                if slower.cost - now.cost <= left:
                    gains[layer] = (now.error - slower.error) / (slower.cost - now.cost)
        if not gains:
            return filled
        filled[max(gains, key=gains.__getitem__)] += 1
