"""The statistics of one input, in the forms that criteria and recovery read."""

from __future__ import annotations

from sparse_engine.pruning.criteria.base import Inputs
from sparse_engine.pruning.statistics.moments import InputNorms, Moments
from sparse_engine.pruning.statistics.system import System


class InputStatistics:
    """Statistics of an input that a group of layers reads.

    Args:
        collected: what was collected; None if no token reaches the layers, or nothing is needed.
    """

    def __init__(self, collected: Moments | InputNorms | None) -> None:
        self._collected = collected
        self._systems: dict[bool, System] = {}

    @property
    def are_missing(self) -> bool:
        """Whether nothing was collected."""
        return self._collected is None

    def system(self, centred: bool) -> System | None:
        """The linear system of the input, built once; None if no second moments were collected."""
        if not isinstance(self._collected, Moments):
            return None
        if centred not in self._systems:
            self._systems[centred] = System(self._collected, centred)
        return self._systems[centred]

    def inputs(self, centred: bool = False) -> Inputs:
        """What a criterion reads."""
        if isinstance(self._collected, InputNorms):
            return Inputs(norms=self._collected.norms())
        if system := self.system(centred):
            return Inputs(norms=system.hessian.diagonal().sqrt(), hessian=system.hessian)
        return Inputs()
