"""Captured: what modules compute in a forward pass, by hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError

Reader = Callable[[Any, Any, Any], Tensor | None]
"""reader(args, kwargs, output) of one call of a module: the tensor to keep."""


class Captured:
    """Tensors of the last forward pass, one for each reader.

    Args:
        model: the model whose modules are read.
        readers: by a name for messages, the dotted name of a module and what is read of a call.
    """

    def __init__(self, model: nn.Module, readers: dict[str, tuple[str, Reader]]) -> None:
        self._names = list(readers)
        self._tensors: dict[str, Tensor] = {}
        self._is_open = False
        self._hooks = [
            model.get_submodule(module).register_forward_hook(
                self._keeper(name, reader), with_kwargs=True
            )
            for name, (module, reader) in readers.items()
        ]

    def _keeper(self, name: str, reader: Reader) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._is_open:  # gradient checkpointing runs modules again in the backward pass
                found = reader(args, kwargs, output)
                if found is not None:
                    self._tensors[name] = found

        return keep

    def open(self) -> None:
        """Keep what the next forward pass computes."""
        self._tensors.clear()
        self._is_open = True

    def take(self) -> list[Tensor]:
        """The tensors in the order of the readers, which are then forgotten.

        Raises:
            UsageError: if a module did not run.
        """
        for name in self._names:
            if name not in self._tensors:
                raise UsageError(
                    f"distil: {name} was not seen in the forward pass; make the Pruner before a "
                    "compiled model runs for the first time"
                )
        tensors = [self._tensors[name] for name in self._names]
        self._tensors.clear()
        self._is_open = False
        return tensors

    def remove(self) -> None:
        """Take the hooks out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._tensors.clear()


def check_gradients(tensors: list[Tensor]) -> None:
    """Raise UsageError if none of these tensors of the model has a gradient."""
    if torch.is_grad_enabled() and not any(tensor.requires_grad for tensor in tensors):
        raise UsageError(
            "distil: the inner states have no gradient; with gradient checkpointing give "
            "use_reentrant=False, else leave some layers trainable"
        )
