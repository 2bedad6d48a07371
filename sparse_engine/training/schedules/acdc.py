"""AC/DC: sparse and dense phases in turn, at last a sparse one.

Peste et al. 2021, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
arXiv:2106.12379. In a dense phase the removed weights are trained again, from zero. So a weight
that was removed by mistake can return.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from sparse_engine.errors import UsageError
from sparse_engine.training.schedules.base import Schedule


@dataclass(frozen=True)
class ACDC(Schedule):
    """`cycles` times a sparse phase and a dense one, of equal length; sparse from the end on.

    Leave some of the training after the window: its last phase, which is sparse, is the rest of the
    training, and should be the longest. A dense phase before the first sparse one is what comes
    before `start`.

    Args:
        cycles: how many pairs of phases are in the window.

    Raises:
        UsageError: unless there are 1 to 1000.
    """

    name = "acdc"
    cycles: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.cycles <= 1000:
            raise UsageError(f"schedule acdc: cycles={self.cycles} is not from 1 to 1000")

    @property
    def moments(self) -> tuple[float, ...]:
        phases = 2 * self.cycles
        return tuple(k / phases for k in range(phases + 1))

    def sparsity(self, progress: float, initial: float, final: float) -> float:
        phase = bisect_right(self.moments, progress) - 1
        return 0.0 if phase % 2 else final
