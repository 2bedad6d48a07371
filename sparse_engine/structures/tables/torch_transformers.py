"""Heads of torch.nn.MultiheadAttention, and units of nn.TransformerEncoderLayer and DecoderLayer.

They may be inside of nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer, or any module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sparse_engine.modules.cut_attention import CutMultiheadAttention
from sparse_engine.modules.eligible import skip_reason
from sparse_engine.structures.site import Left, Site, Size

ATTENTIONS = (nn.MultiheadAttention, CutMultiheadAttention)
LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def sites(model: nn.Module) -> Iterator[Site | Left]:
    """The heads and units of these modules; those that stay, and why."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, ATTENTIONS):
            yield _heads(name, prefix, module)
        elif isinstance(module, LAYERS):
            yield _units(name, prefix, module)


def _heads(name: str, prefix: str, attention: Any) -> Site | Left:
    reason = skip_reason(attention, *ATTENTIONS)
    if reason:
        return Left(name, "head", f"{name or 'the model'} {reason}")
    if reason := skip_reason(attention.out_proj, nn.Linear, NonDynamicallyQuantizableLinear):
        return Left(name, "head", f"{prefix}out_proj {reason}")
    heads, width = attention.num_heads, attention.head_dim
    groups = torch.arange(heads).repeat_interleave(width)
    return Site(
        name,
        "head",
        heads,
        {f"{prefix}{part}_proj": groups for part in "qkv"},
        {f"{prefix}out_proj": groups},
        sizes=(Size(name, "num_heads", 1),),
    )


def _units(name: str, prefix: str, layer: Any) -> Site | Left:
    up, down = f"{prefix}linear1", f"{prefix}linear2"
    for path, module, classes in (
        (name or "the model", layer, LAYERS),
        (up, layer.linear1, (nn.Linear,)),
        (down, layer.linear2, (nn.Linear,)),
    ):
        if reason := skip_reason(module, *classes):
            return Left(up, "unit", f"{path} {reason}")
    units = torch.arange(layer.linear2.in_features)
    return Site(up, "unit", len(units), {up: units}, {down: units})
