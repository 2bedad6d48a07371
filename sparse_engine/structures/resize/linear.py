"""torch.nn.Linear, and GPT-2's Conv1D."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.modules.linears import is_conv1d, is_linear
from sparse_engine.structures.resize.base import Kept, select


def matches(module: nn.Module) -> bool:
    """Whether the module is a linear layer."""
    return is_linear(module)


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep rows and columns of the layer, whose own name is ""."""
    of = kept[""]
    out_dim = 1 if is_conv1d(module) else 0
    module.weight = select(select(module.weight, out_dim, of.rows), 1 - out_dim, of.columns)
    module.bias = select(module.bias, 0, of.rows)
    sizes = module.weight.shape[out_dim], module.weight.shape[1 - out_dim]
    for names, size in zip((("out_features", "nf"), ("in_features", "nx")), sizes, strict=True):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, size)
