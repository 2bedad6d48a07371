"""One shot: everything is removed at the beginning, and the rest of the training recovers."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_engine.training.schedules.base import Schedule


@dataclass(frozen=True)
class OneShot(Schedule):
    """The final sparsity from the first step on."""

    name = "one_shot"

    @property
    def moments(self) -> tuple[float, ...]:
        return (0.0,)

    def sparsity(self, progress: float, initial: float, final: float) -> float:
        return final
