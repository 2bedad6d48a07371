"""Linear: the same number of weights is removed at every event."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.training.schedules.base import Schedule


@dataclass(frozen=True)
class Linear(Schedule):
    """s(p) = s_0 + (s_1 - s_0) p at the share p of the window."""

    name = "linear"

    def sparsity(self, progress: float, initial: float, final: float) -> float:
        return initial + (final - initial) * progress
