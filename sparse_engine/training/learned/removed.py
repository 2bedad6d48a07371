"""The values of removed weights, which come back with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.parameters import copy_tensors
from sparse_engine.training.training import Training


class RemovedValues:
    """The weights W of W' = W * M, where the model holds W'.

    A removed weight has no gradient, so its value does not change until it comes back.

    Args:
        layers: those that have masks.
        training: holds their weights.
    """

    def __init__(self, layers: Iterable[TrainedLayer], training: Training) -> None:
        self._values = {
            layer.name: torch.zeros_like(
                layer.weight_in(training.model), memory_format=torch.contiguous_format
            )
            for layer in layers
        }

    def full(self, layer: TrainedLayer, training: Training) -> Tensor:
        """The weight W, [out, in]."""
        # One of the two is zero. The mask is not asked, because an interrupt may have undone it.
        return layer.weight_in(training.model) + self._values[layer.name]

    def renew(self, layer: TrainedLayer, keep: Tensor, training: Training) -> None:
        """Replace the mask of a layer.

        Args:
            layer: the layer.
            keep: bool [out, in].
            training: holds weights and masks.
        """
        full = self.full(layer, training)
        self._values[layer.name] = full.masked_fill(keep, 0)
        layer.weight_in(training.model).copy_(full.masked_fill(~keep, 0))
        training.masks.set(layer, keep, training.optimizer)

    def clear(self) -> None:
        """Forget the values: nothing comes back any more."""
        self._values = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The values by layer."""
        return dict(self._values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the values.

        Raises:
            InvalidFileError: if they are of another model.
        """
        if not state:
            self.clear()
            return
        if state.keys() != self._values.keys():
            raise InvalidFileError("the state holds removed weights of another model")
        copy_tensors([*self._values.values()], [state[name] for name in self._values])
