"""A budget of time: what is left of it, and whether another round fits into it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from time import monotonic

from sparse_engine.errors import UsageError
from sparse_engine.tuning.rounds import Round

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
NUMBER = r"[0-9]+(?:\.[0-9]+)?"
DURATION = re.compile(rf"(?:{NUMBER}[hms]){{1,3}}")
LONGEST = 1e9  # seconds
RECENT = 3
"""The next round is expected to take as long as the longest of so many rounds before it."""


class BudgetSpent(BaseException):
    """The budget ended inside of a round.

    It is no Exception: what turns the errors of a model into messages must let it pass.
    """


class Clock:
    """Measures a run.

    Args:
        budget: seconds; None for no limit.
        spent: seconds that the run took before, in another process.
    """

    def __init__(self, budget: float | None = None, spent: float = 0.0) -> None:
        self._budget = math.inf if budget is None else budget
        self._began = monotonic() - spent

    @property
    def seconds(self) -> float:
        """How long the run has taken."""
        return monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left, negative when the budget is spent."""
        return self._budget - self.seconds

    def check(self) -> None:
        """Raise BudgetSpent if nothing is left."""
        if self.left <= 0:
            raise BudgetSpent

    def has_time_for_another(self, rounds: Sequence[Round]) -> bool:
        """Whether the next round probably ends in time, judged by those before it."""
        expected = max((r.seconds for r in rounds[-RECENT:]), default=0.0)
        return self.left > expected


def seconds_of(budget: float | str | None) -> float | None:
    """A budget in seconds.

    Args:
        budget: seconds, or a text such as "2h", "1h30m" or "90s"; None for no limit.

    Raises:
        UsageError: if it is neither, or not positive.

    Example:
        seconds_of("1h30m")  # 5400.0
    """
    if budget is None:
        return None
    seconds = 0.0
    if isinstance(budget, str):
        if DURATION.fullmatch(budget):
            parts = re.findall(rf"({NUMBER})([hms])", budget)
            seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    elif isinstance(budget, int | float) and not isinstance(budget, bool):
        seconds = budget
    if not 0 < seconds <= LONGEST:
        raise UsageError(f"budget {budget!r:.40}: give seconds, or a time such as 2h, 1h30m or 90s")
    return float(seconds)


def duration(seconds: float) -> str:
    """A time as a text that `seconds_of` reads, to a whole second from one minute on."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)
