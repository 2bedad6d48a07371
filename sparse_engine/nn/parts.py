"""The linear layers of a sparse module: dense views of the original's weights, or packed."""

from __future__ import annotations

import torch
from torch import nn

from sparse_engine.config import SparseConfig
from sparse_engine.nn.linear import SparseLinear


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
