"""Captured: what modules compute in a forward pass, by hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparse_engine.errors import UsageError

Reader = Callable[[Any, Any, Any], Tensor | None]
"""reader(args, kwargs, output) of one call of a module: the tensor to keep."""


class Captured:
    """Tensors of one forward pass, one for each reader.

    The hooks are in the model only for that pass: modules with hooks are neither pruned nor cut.

    Args:
        model: the model whose modules are read.
        readers: by a name for messages, the dotted name of a module and what is read of a call.
    """

    def __init__(self, model: nn.Module, readers: dict[str, tuple[str, Reader]]) -> None:
        self._model = model
        self._readers = readers
        self._tensors: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def open(self) -> None:
        """Keep what the next forward pass computes."""
        self.close()
        self._hooks = [
            self._model.get_submodule(module).register_forward_hook(
                self._keeper(name, reader), with_kwargs=True
            )
            for name, (module, reader) in self._readers.items()
        ]

    def _keeper(self, name: str, reader: Reader) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found = reader(args, kwargs, output)
            if found is not None:
                self._tensors[name] = found

        return keep

    def take(self) -> list[Tensor]:
        """The tensors in the order of the readers; the hooks are removed.

        Raises:
            UsageError: if a module did not run.
        """
        found = self._tensors
        self.close()
        for name in self._readers:
            if name not in found:
                raise UsageError(
                    f"distil: {name} was not seen in the forward pass; compile the model anew, or "
                    "leave hidden and attention out"
                )
        return [found[name] for name in self._readers]

    def close(self) -> None:
        """Take the hooks out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._tensors = [], {}


def check_gradients(tensors: list[Tensor]) -> None:
    """Raise UsageError if none of these tensors of the model has a gradient."""
    if torch.is_grad_enabled() and not any(tensor.requires_grad for tensor in tensors):
        raise UsageError(
            "distil: the inner states have no gradient; with gradient checkpointing give "
            "use_reentrant=False, else leave some layers trainable"
        )
