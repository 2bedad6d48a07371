"""torch.nn.MultiheadAttention, which becomes a CutMultiheadAttention."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.modules.cut_attention import split_projections_
from sparse_engine.structures.resize import linear
from sparse_engine.structures.resize.base import Kept, select

KEYS_AND_VALUES = {"k_proj": "bias_k", "v_proj": "bias_v"}


def matches(module: nn.Module) -> bool:
    """Whether the module is torch's attention with its own parameters."""
    return type(module) is nn.MultiheadAttention


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep rows of q_proj, k_proj and v_proj. Columns of out_proj, a linear layer, are its own."""
    split_projections_(module)
    for name, of in kept.items():
        linear.resize(module.get_submodule(name), {"": of})
        if name in KEYS_AND_VALUES:
            extra = KEYS_AND_VALUES[name]
            setattr(module, extra, select(getattr(module, extra), 2, of.rows))
