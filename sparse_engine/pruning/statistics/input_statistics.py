"""The statistics of one input, in the forms that criteria and recovery read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.statistics.moments import InputNorms, Moments
from sparse_engine.pruning.statistics.needs import Statistic
from sparse_engine.pruning.statistics.system import System


class LayerGradients(Protocol):
    """Statistics of the gradients of layers."""

    def of(self, layer: Layer) -> dict[Statistic, Tensor]:
        """Those of one layer, as fields of `Inputs`."""


class InputStatistics:
    """Statistics of an input that a group of layers reads, and of the gradients of these layers.

    Args:
        collected: what was collected; None if no token reaches the layers, or nothing is needed.
        gradients: those of the layers; None if they are not needed.
        has_one_system: whether all systems that are requested are centred alike, as they are where
            all layers have a bias, or none has. Then H is held once.
    """

    def __init__(
        self,
        collected: Moments | InputNorms | None,
        gradients: LayerGradients | None = None,
        has_one_system: bool = False,
    ) -> None:
        self._collected = collected
        self._has_one_system = has_one_system
        self._gradients = gradients
        self._systems: dict[bool, System] = {}

    @property
    def are_missing(self) -> bool:
        """Whether nothing was collected."""
        return self._collected is None

    def release(self) -> None:
        """Drop what was collected; it is read no more."""
        self._collected = None
        self._systems.clear()

    def system(self, centred: bool) -> System | None:
        """The linear system of the input, built once; None if no second moments were collected."""
        if not isinstance(self._collected, Moments):
            return None
        if centred not in self._systems:
            self._systems[centred] = System(self._collected, centred, self._has_one_system)
        return self._systems[centred]

    def inputs(self, layer: Layer, centred: bool = False) -> Inputs:
        """What a criterion reads about one of the layers; no gradients if no token reaches it."""
        inputs = Inputs(coupling=layer.coupling)
        if isinstance(self._collected, InputNorms):
            inputs = replace(inputs, norms=self._collected.norms())
        elif system := self.system(centred):
            norms = system.hessian.diagonal().sqrt()
            inputs = replace(inputs, norms=norms, hessian=system.hessian, ridge=system.ridge)
        if self._gradients is None or self.are_missing:
            return inputs
        gradients: dict[Any, Any] = {**self._gradients.of(layer)}
        return replace(inputs, **gradients)
