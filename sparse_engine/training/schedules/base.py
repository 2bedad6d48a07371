"""The interface of a schedule: how much is removed at which share of the training."""

from __future__ import annotations

from abc import abstractmethod

from sparse_engine.named import Named


class Schedule(Named):
    """The sparsity during a window of the training."""

    kind = "schedule"

    @property
    def moments(self) -> tuple[float, ...]:
        """When the sparsity changes, as ascending shares of the window.

        It is empty for a schedule that rises all the time; the recipe then gives the events.
        """
        return ()

    @abstractmethod
    def sparsity(self, progress: float, initial: float, final: float) -> float:
        """The sparsity at a point of the window.

        Args:
            progress: the share of the window that has passed, from 0 to 1.
            initial: sparsity at the beginning.
            final: sparsity at the end.

        Returns:
            A fraction of zeros; exactly `final` at the end.
        """
