"""One candidate of `search`: arguments of `prune`, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """Arguments of `prune`, and what came of them.

    Attributes:
        arguments: those of the grid, for `se.prune(model, **arguments)`.
        scores: the metric in each fold; None where it was not finite.
        removed: the fraction of all parameters that is gone, the mean over folds.
        cost: megabytes, or milliseconds of a call, of the converted model; None by quality.
        less: how many times less that is than the cost of the dense model.
    """

    arguments: dict[str, Any]
    scores: tuple[float | None, ...]
    removed: float
    cost: float | None = None
    less: float | None = None

    @property
    def label(self) -> str:
        """The arguments as text."""
        return label_of(self.arguments)

    @property
    def mean(self) -> float | None:
        """Of the scores; None if one of them was not finite."""
        known = finite_scores(self.scores)
        return fmean(known) if len(known) == len(self.scores) else None

    @property
    def spread(self) -> float:
        """The standard deviation of the scores; 0 of a single one."""
        known = finite_scores(self.scores)
        return stdev(known) if len(known) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean: the spread over the root of the number of folds."""
        return self.spread / math.sqrt(len(self.scores))


def finite_scores(scores: Sequence[float | None]) -> list[float]:
    """Those that are known."""
    return [score for score in scores if score is not None]


def label_of(arguments: Mapping[str, Any]) -> str:
    """Arguments as text; a single one without its name."""
    if len(arguments) == 1:
        [value] = arguments.values()
        return str(value)
    return ", ".join(f"{name} {value}" for name, value in arguments.items())
