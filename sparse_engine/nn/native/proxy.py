"""Proxy: a module in place of another, with the same submodules under the same names."""

from __future__ import annotations

from typing import Any

from torch import nn


class Proxy(nn.Module):
    """Runs what `original` does in another way; parameters, names and attributes stay its own."""

    def __init__(self, original: nn.Module) -> None:
        """Share the submodules of `original`: a swap below either is seen by both."""
        super().__init__()
        self._modules = original._modules
        self._original = (original,)  # in a tuple, so that it is no submodule
        self.train(original.training)

    @property
    def original(self) -> nn.Module:
        """The module that this one stands for."""
        return self._original[0]

    def __getattr__(self, name: str) -> Any:
        """What callers look for on the original: dtype, main_input_name, get_input_embeddings..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("_original")
            if original is None or name.startswith("__"):
                raise
            return getattr(original[0], name)
