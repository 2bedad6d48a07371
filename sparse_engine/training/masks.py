"""Masks of parameters: what is removed stays zero, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.training.layers import TrainedLayer


class Masks:
    """Keep masks of the parameters of a model; a parameter without a mask is kept whole.

    A mask has the shape and the strides of its parameter, and is True where a weight is kept.

    Args:
        model: the model. Its parameters are looked up by name whenever they are needed, because
            removing structures replaces them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._keep: dict[str, Tensor] = {}
        self._before: dict[str, Tensor | None] | None = None  # masks that changed, as they were
        self._layers: dict[str, TrainedLayer] = {}
        self._owners: dict[str, str] = {}

    def add(self, layers: Iterable[TrainedLayer], owner: str = "") -> None:
        """Count these layers in the sparsity; they are kept whole until `set` or `take`.

        Args:
            layers: the layers.
            owner: the modifier that alone may change their masks; "" if others may too.

        Raises:
            UsageError: if one of them has another owner, or is to have one and was added before.
        """
        added = {layer.name: layer for layer in layers}
        for name in added:
            if name in self._owners or (owner and name in self._layers):
                first, second = self._owners.get(name) or "another modifier", owner or "another one"
                raise UsageError(
                    f"{name} is pruned by {first} and by {second}: give each of them layers of its "
                    "own, with layers or ignore"
                )
        self._owners |= dict.fromkeys(added if owner else (), owner)
        self._layers |= added

    def of(self, layer: TrainedLayer) -> Tensor:
        """The keep mask of a layer, bool [out, in]; `set` changes it."""
        return layer.view(self._whole(layer.parameter))

    def _whole(self, name: str) -> Tensor:
        """The mask of a parameter, where the parameter is; models may move to another device."""
        parameter = self._model.get_parameter(name)
        keep = self._keep.get(name)
        if keep is None:
            keep = torch.ones_like(parameter, dtype=torch.bool)
        elif keep.device != parameter.device:
            keep = keep.to(parameter.device)
        self._keep[name] = keep
        return keep

    def set(self, layer: TrainedLayer, keep: Tensor, optimizer: Optimizer | None = None) -> None:
        """Replace the mask of a layer.

        Args:
            layer: the layer.
            keep: bool [out, in].
            optimizer: its state becomes zero where a weight is removed or comes back, so that a
                weight that returns starts without momentum.
        """
        self._remember(layer.parameter)
        mask = self.of(layer)
        changed = torch.zeros_like(self._whole(layer.parameter))
        layer.view(changed).copy_(mask != keep)
        mask.copy_(keep)
        if optimizer is None:
            return
        parameter = self._model.get_parameter(layer.parameter)
        for value in optimizer.state.get(parameter, {}).values():
            whole = isinstance(value, Tensor) and value.shape == parameter.shape
            if whole and value.is_floating_point():  # codes of 8 bits are no numbers
                value.masked_fill_(changed.to(value.device), 0)

    def take(self, layers: Iterable[TrainedLayer], optimizer: Optimizer | None = None) -> None:
        """Make the zeros that layers have now their masks."""
        for layer in layers:
            weight = layer.view(self._model.get_parameter(layer.parameter).detach())
            self.set(layer, weight != 0, optimizer)

    @property
    def layers(self) -> list[TrainedLayer]:
        """Those that were added."""
        return list(self._layers.values())

    @property
    def sparsity(self) -> float:
        """Fraction of removed weights in the layers that were added; 0 without any."""
        total = sum(layer.shape[0] * layer.shape[1] for layer in self._layers.values())
        kept = sum(int(self.of(layer).sum()) for layer in self._layers.values())
        return 1 - kept / total if total else 0.0

    @property
    def sparsities(self) -> dict[str, float]:
        """By layer that was added, the fraction of its weights that are removed."""
        return {
            name: 1 - int(self.of(layer).sum()) / (layer.shape[0] * layer.shape[1])
            for name, layer in self._layers.items()
        }

    def release(self, layers: Iterable[TrainedLayer]) -> None:
        """Let all weights of layers be trained again; those that were removed start at zero."""
        for layer in layers:
            self._remember(layer.parameter)
            self.of(layer).fill_(True)

    def drop(self, parameters: Iterable[str]) -> None:
        """Forget the masks of parameters of these names."""
        dropped = set(parameters)
        for name in dropped:
            self._remember(name)
            self._keep.pop(name, None)
        self._layers = {
            name: layer for name, layer in self._layers.items() if layer.parameter not in dropped
        }

    @contextmanager
    def unchanged_after_error(self) -> Iterator[None]:
        """Inside of a `with` block, an error or an interrupt makes the masks what they were."""
        layers = self._layers
        self._before = {}
        try:
            yield
        except BaseException:
            for name, keep in self._before.items():
                if keep is None:
                    self._keep.pop(name, None)
                else:
                    self._keep[name] = keep
            self._layers = layers
            raise
        finally:
            self._before = None

    def _remember(self, name: str) -> None:
        """Keep a mask as it is before it changes, if that may have to be undone."""
        if self._before is not None and name not in self._before:
            keep = self._keep.get(name)
            self._before[name] = None if keep is None else keep.clone()

    @torch.no_grad()
    def apply_to_weights(self) -> None:
        """Set the removed weights to zero, also where they are NaN or infinite."""
        for name in self._keep:
            self._model.get_parameter(name).masked_fill_(~self._whole(name), 0)

    @torch.no_grad()
    def apply_to_gradients(self) -> None:
        """Set the gradients of removed weights to zero, also where they are NaN or infinite."""
        for name in self._keep:
            gradient = self._model.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(~self._whole(name), 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks by the names of their parameters."""
        return {name: keep.clone() for name, keep in self._keep.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace all masks.

        Raises:
            InvalidFileError: if a mask does not fit the model.
        """
        parameters = dict(self._model.named_parameters())
        masks = {}
        for name, keep in state.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != keep.shape or keep.dtype != torch.bool:
                raise InvalidFileError(f"the state holds a mask of {name!r}, which does not fit")
            masks[name] = torch.empty_like(parameter, dtype=torch.bool).copy_(keep)
        self._keep = masks
