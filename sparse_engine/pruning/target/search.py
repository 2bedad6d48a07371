"""Improves a choice of levels by the error of the whole model: some layers get more, others less.

The errors of layers do not simply add up in the output, so the dynamic programme's choice is only
a start. Sieberling et al. 2024, "EvoPress: Towards Optimal Dynamic Model Compression via
Evolutionary Search", arXiv:2410.14649.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sparse_engine.pruning.target.levels import Tables, total

MOST_SWAPS = 3  # layers that a mutation makes slower; as many others are made faster as it takes
TRIES = 50  # mutations until one gives a choice that was not evaluated before


def search(
    tables: Tables,
    start: Sequence[int],
    budget: float,
    evaluate: Callable[[Sequence[int]], float],
    proceed: Callable[[float], bool],
    seed: int = 0,
) -> list[int]:
    """Mutate a choice, and keep each mutation that has a lower error.

    Args:
        tables: by layer, its levels, cost ascending and error descending.
        start: by layer, the index of its level; within the budget.
        budget: for the summed costs.
        evaluate: the error of the model with these levels.
        proceed: is called with the lowest error so far; False ends the search.
        seed: of the mutations.

    Returns:
        The best choice: within the budget, and never with a higher error than `start`.
    """
    rng = random.Random(seed)
    best, least = list(start), evaluate(start)
    seen = {tuple(best)}
    while proceed(least):
        mutated = _unseen(tables, best, budget, rng, seen)
        if mutated is None:
            break
        seen.add(tuple(mutated))
        found = evaluate(mutated)
        if found < least:
            best, least = mutated, found
    return best


def _unseen(
    tables: Tables, picks: list[int], budget: float, rng: random.Random, seen: set[tuple[int, ...]]
) -> list[int] | None:
    """A mutation that was not evaluated yet; None if none is found."""
    for _ in range(TRIES):
        mutated = mutate(tables, picks, budget, rng)
        if tuple(mutated) not in seen:
            return mutated
    return None


def mutate(tables: Tables, picks: Sequence[int], budget: float, rng: random.Random) -> list[int]:
    """Make a few layers slower, then others faster until the budget is met, then use what is left.

    Args:
        tables: by layer, its levels, cost ascending.
        picks: by layer, the index of its level; within the budget.
        budget: for the summed costs.
        rng: the source of random numbers.
    """
    mutated = list(picks)
    layers = range(len(tables))
    raised = rng.sample(layers, min(rng.randint(1, MOST_SWAPS), len(tables)))
    for layer in raised:
        mutated[layer] = min(mutated[layer] + rng.randint(1, 2), len(tables[layer]) - 1)
    while total(tables, mutated) > budget:
        others = [layer for layer in layers if mutated[layer] and layer not in raised]
        lowered = others or [layer for layer in layers if mutated[layer]]
        mutated[rng.choice(lowered)] -= 1
    for layer in rng.sample(layers, len(tables)):
        if mutated[layer] + 1 < len(tables[layer]):
            mutated[layer] += 1
            if total(tables, mutated) > budget:
                mutated[layer] -= 1
    return mutated
