"""Proxy: a module in place of another, with the same submodules under the same names."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.modules.eligible import is_proxied


class Proxy(nn.Module):
    """Computes what `original` does in another way; parameters, names and attributes are shared.

    A proxy replaces its original in the module that holds it. An original that no module holds
    gets the forward of its proxy instead: `install` and `remove`.
    """

    def __init__(self, original: nn.Module) -> None:
        """Share the submodules of `original`: both see a module that is replaced in either."""
        super().__init__()
        self._modules = original._modules
        self._original = (original,)  # in a tuple, so that it is no submodule
        self.training = original.training  # submodules stay in their modes

    @property
    def original(self) -> nn.Module:
        """The module that this one replaces."""
        return self._original[0]

    def install(self, model: nn.Module, name: str) -> None:
        """Let calls of the original, which is called `name` in `model`, run this proxy."""
        if not name:
            model.forward = self.forward
            return
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, self)

    def remove(self, model: nn.Module, name: str) -> None:
        """Undo `install`."""
        if not name:
            del model.forward
            return
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, self.original)

    def call_original(self, *arguments: Any, **named: Any) -> Any:
        """What the original computes itself."""
        original = self.original
        if is_proxied(original):
            return type(original).forward(original, *arguments, **named)
        return original(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the original that callers read: dtype, main_input_name..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("_original")
            if original is None or name.startswith("__"):
                raise
            return getattr(original[0], name)
