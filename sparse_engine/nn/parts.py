"""Sparse modules that consist of linear layers, each packed or a dense view of the original."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from sparse_engine.config import SparseConfig
from sparse_engine.nn.linear import SparseLinear


class ComposedModule(nn.Module):
    """Base of the sparse modules that consist of linear layers."""

    @classmethod
    def unpacked(cls, module: Any) -> Self:
        """A sparse module whose linear layers are dense views of the weights of `module`.

        Args:
            module: of the class that this one replaces.

        Raises:
            UsageError: `module` has options that are not supported, or weights that are computed
                before each call.
        """
        raise NotImplementedError

    @classmethod
    def from_dense(cls, module: Any, config: SparseConfig | str | None = None) -> Self:
        """Store the weights of `module` by `config`; `module` stays as it is.

        Args:
            module: of the class that this one replaces.
            config: how to store the weights; by default the fastest format is measured.

        Raises:
            UsageError: As `unpacked`, or a weight does not fit the format.
        """
        sparse = cls.unpacked(module)
        pack_linears_(sparse, config)
        return sparse


def pack_linears_(module: nn.Module, config: SparseConfig | str | None) -> None:
    """Replace every torch.nn.Linear in `module` by a SparseLinear, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, SparseLinear.from_dense(child, config))


def as_dense_linear(layer: nn.Module, dtype: torch.dtype | None = None) -> nn.Linear:
    """A sparse or dense linear layer as torch.nn.Linear; a sparse one in `dtype` or its own."""
    if isinstance(layer, SparseLinear):
        return layer.to_dense(dtype)
    assert isinstance(layer, nn.Linear)
    return layer
