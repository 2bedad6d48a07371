"""MPNet of Hugging Face transformers: a BERT with relative positions (Song et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.models.base import (
    Family,
    LayerNames,
    LayerStack,
    Residual,
    activation_of,
    children_of,
    model_type,
)

LAYER = LayerNames(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
    up="intermediate.dense",
    down="output.dense",
    norm1="attention.LayerNorm",
    norm2="output.LayerNorm",
)


class MPNet(Family):
    """`encoder.layer.N` with `attention.attn.{q,k,v,o}`, `attention.LayerNorm`, `intermediate` and
    `output`; every layer adds the same bias by distance to its scores.
    """

    name = "mpnet"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return model_type(model) == "mpnet" and bool(children_of(model, "encoder.layer"))

    def blocks(self, model: nn.Module) -> list[str]:
        return children_of(model, "encoder.layer")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        found = {}
        for block in self.blocks(model):
            found[f"{block}.attention.attn.o"] = Residual(f"{block}.attention", argument=0)
            found[f"{block}.output.dense"] = Residual(f"{block}.output", argument=1)
        return found

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        stack = LayerStack(
            blocks=tuple(self.blocks(model)),
            layer=LAYER,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            inner=config.intermediate_size,
            activation=activation_of(config.hidden_act),
            position_bias=_position_bias,
            reach=config.max_position_embeddings,
        )
        return (stack,)


def _position_bias(encoder: Any, reach: int) -> Tensor:
    """[heads, 2 reach - 1] by query minus key, from the encoder's own buckets."""
    key_minus_query = torch.arange(reach - 1, -reach, -1)
    table = encoder.relative_attention_bias
    buckets = encoder.relative_position_bucket(key_minus_query, num_buckets=table.num_embeddings)
    return table.weight.detach()[buckets].T
