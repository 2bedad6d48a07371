"""Folds of cross-validation: every item is held out once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparse_engine.errors import UsageError


@dataclass(frozen=True)
class Fold:
    """A part of the data, and the rest.

    Attributes:
        training: the items to train and to calibrate on.
        held_out: the items to evaluate on.
    """

    training: list[Any]
    held_out: list[Any]


def make_folds(data: Sequence[Any], count: int, seed: int) -> list[Fold]:
    """Shuffle the items, and hold out one of `count` parts after the other.

    The sizes of the parts differ by at most one. Items keep their order within a part.

    Args:
        data: a list of items of any kind.
        count: how many folds.
        seed: of the shuffle.

    Raises:
        UsageError: if there are fewer than two folds, or fewer items than folds.
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise UsageError(f"data is a {type(data).__name__}; give a list of items")
    if type(count) is not int or count < 2:
        raise UsageError(f"folds {count!r:.40}: give a whole number from 2 up")
    if len(data) < count:
        raise UsageError(f"{count} folds need as many items of data; there are {len(data)}")
    order = list(range(len(data)))
    random.Random(seed).shuffle(order)
    parts = [set(order[number::count]) for number in range(count)]
    return [
        Fold(
            [item for i, item in enumerate(data) if i not in part],
            [item for i, item in enumerate(data) if i in part],
        )
        for part in parts
    ]
