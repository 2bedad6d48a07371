"""Proxy: a module in place of another, with the same submodules under the same names."""

from __future__ import annotations

from typing import Any

from torch import nn


class Proxy(nn.Module):
    """Computes what `original` does in another way; parameters, names and attributes are shared."""

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

    def __getattr__(self, name: str) -> Any:
        """Attributes of the original that callers read: dtype, main_input_name..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("_original")
            if original is None or name.startswith("__"):
                raise
            return getattr(original[0], name)
