"""Exponential: the same share of what is left is removed at every event.

This is iterative pruning as in Han et al. 2015, "Learning both Weights and Connections for
Efficient Neural Networks", arXiv:1506.02626, and Frankle and Carbin 2019, "The Lottery Ticket
Hypothesis", arXiv:1803.03635.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.training.schedules.base import Schedule


@dataclass(frozen=True)
class Exponential(Schedule):
    """1 - s(p) = (1 - s_0)^(1 - p) (1 - s_1)^p at the share p of the window."""

    name = "exponential"

    def sparsity(self, progress: float, initial: float, final: float) -> float:
        if progress >= 1:
            return final  # powers are rounded
        return 1 - (1 - initial) ** (1 - progress) * (1 - final) ** progress
