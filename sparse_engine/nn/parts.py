"""The linear layers that a twin is made of: dense views of a module's weights, or sparse."""

from __future__ import annotations

import torch
from torch import nn

from sparse_engine.config import SparseConfig
from sparse_engine.nn.linear import SparseLinear


def sparse_parts_(twin: nn.Module, config: SparseConfig | str | None) -> None:
    """Store every torch.nn.Linear in `twin` as `config` says, in place."""
    for module in list(twin.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.Linear):
                setattr(module, name, SparseLinear.from_dense(part, config))


def dense_part(part: nn.Module, dtype: torch.dtype | None = None) -> nn.Linear:
    """A part as a torch.nn.Linear, in `dtype` or its own."""
    if isinstance(part, SparseLinear):
        return part.to_dense(dtype)
    assert isinstance(part, nn.Linear)
    return part
