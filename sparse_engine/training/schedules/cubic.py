"""Cubic: much is removed early, while the rest can still take over, and little at the end.

Zhu and Gupta 2018, "To prune, or not to prune: exploring the efficacy of pruning for model
compression", arXiv:1710.01878.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.training.schedules.base import Schedule


@dataclass(frozen=True)
class Cubic(Schedule):
    """s(p) = s_1 + (s_0 - s_1) (1 - p)^3 at the share p of the window."""

    name = "cubic"
    aliases = ("agp",)

    def sparsity(self, progress: float, initial: float, final: float) -> float:
        return final + (initial - final) * (1 - progress) ** 3
