"""Multi-step: a few levels of equal height, each held until the next one."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from sparse_engine.errors import UsageError
from sparse_engine.training.schedules.base import Schedule


@dataclass(frozen=True)
class MultiStep(Schedule):
    """s = s_0 + (s_1 - s_0) k / n from the k-th of n milestones on.

    Args:
        levels: how many there are, the first at the beginning of the window, the last at its end.
        milestones: when they begin instead, as ascending shares of the window: (0, 0.25, 1).

    Raises:
        UsageError: unless there are 1 to 1000 levels, or for milestones that do not ascend.
    """

    name = "multi_step"
    levels: int = 4
    milestones: tuple | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 1000:
            raise UsageError(f"schedule multi_step: levels={self.levels} is not from 1 to 1000")
        given = self.milestones
        if given is None:
            return
        numbers = all(type(share) in (int, float) and 0 <= share <= 1 for share in given)
        if not given or not numbers or any(b <= a for a, b in pairwise(given)):
            raise UsageError(
                f"schedule multi_step: milestones={given!r:.80}; expected ascending shares of the "
                "window, as (0, 0.25, 1)"
            )

    @property
    def moments(self) -> tuple[float, ...]:
        if self.milestones is not None:
            return tuple(map(float, self.milestones))
        return tuple(k / max(self.levels - 1, 1) for k in range(self.levels))

    def sparsity(self, progress: float, initial: float, final: float) -> float:
        moments = self.moments
        level = bisect_right(moments, progress)
        if level == len(moments):
            return final
        return initial + (final - initial) * level / len(moments)
