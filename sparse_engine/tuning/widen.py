"""Which sparsity the next round tries: the next of a list, or a step more, halved at failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparse_engine.errors import UsageError
from sparse_engine.tuning.rounds import Round, Stop

DIGITS = 6  # of a sparsity, so that sums of steps are round numbers


@dataclass(frozen=True)
class Widen:
    """Steps to the highest sparsity that passes.

    The first round has the sparsity `start`, each next one `step` more than the best that passed.
    The step is halved as long as it would reach a sparsity that failed. So the limit is found to
    within `least`.

    Attributes:
        start: sparsity of the first round.
        step: from a round that passed to the next one.
        least: a step below it ends the run.
        most: the highest sparsity that is tried.

    Raises:
        UsageError: if a value is out of range.

    Example:
        Widen(start=0.5, step=0.1, least=0.025)
    """

    start: float = 0.5
    step: float = 0.1
    least: float = 0.0125
    most: float = 0.98

    def __post_init__(self) -> None:
        for name in ("start", "step", "least", "most"):
            if not is_fraction(getattr(self, name)):
                raise UsageError(
                    f"Widen {name} {getattr(self, name)!r:.40}: give a fraction above 0 and below 1"
                )
        if self.start > self.most:
            raise UsageError(f"Widen start {self.start} is above most {self.most}")
        if self.least > self.step:
            raise UsageError(f"Widen least {self.least} is above step {self.step}")

    def next(self, rounds: Sequence[Round]) -> float | Stop:
        """The sparsity of the next round, or why there is none.

        Args:
            rounds: those before it, which passed or failed.
        """
        if not rounds:
            return self.start
        low = max((r.sparsity for r in rounds if r.passed), default=0.0)
        high = min((r.sparsity for r in rounds if not r.passed), default=None)
        if high is None:
            if low >= self.most:
                return Stop("most", f"sparsity {low:g} passed, and no more was to be tried")
            return min(round(low + self.step, DIGITS), self.most)
        step = self.step if low else self.start
        while round(low + step, DIGITS) >= high:
            step /= 2
            if step < self.least:
                known = f"sparsity {low:g} passed" if low else "no sparsity passed"
                return Stop("limit", f"{known}, {high:g} failed, and the step is below its least")
        return round(low + step, DIGITS)


@dataclass(frozen=True)
class Listed:
    """Sparsities of a list, in ascending order."""

    sparsities: tuple[float, ...]

    def next(self, rounds: Sequence[Round]) -> float | Stop:
        """The sparsity of the next round, or why there is none."""
        if len(rounds) == len(self.sparsities):
            return Stop("list", "every sparsity of the list was tried")
        return self.sparsities[len(rounds)]


Widening = Widen | Listed


def find_widening(sparsities: Any, most: float | None) -> Widening:
    """The widening of the argument `sparsities`.

    Args:
        sparsities: a list of fractions, or a Widen; None for one with its defaults.
        most: a sparsity at which the run ends, if there is one.

    Raises:
        UsageError: if it is neither, or the list is not ascending.
    """
    if sparsities is None:
        sparsities = Widen() if most is None else Widen(start=min(0.5, most), most=most)
    if isinstance(sparsities, Widen):
        return sparsities
    if not isinstance(sparsities, Sequence) or isinstance(sparsities, str) or not sparsities:
        raise UsageError(
            f"sparsities is {sparsities!r:.60}; give a list such as [0.5, 0.7, 0.9], or a Widen"
        )
    if not all(map(is_fraction, sparsities)) or [*sparsities] != sorted({*sparsities}):
        raise UsageError(
            f"sparsities {list(sparsities)!r:.60}: give fractions above 0 and below 1, ascending"
        )
    return Listed(tuple(map(float, sparsities)))


def is_fraction(value: Any) -> bool:
    """Whether a value is a number above 0 and below 1, which no whole number is."""
    return isinstance(value, float) and 0 < value < 1
