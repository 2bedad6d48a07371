"""MPNet of Hugging Face transformers: a BERT with relative positions (Song et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.models import base

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        sum_norm="attention.LayerNorm",
    ),
    feed_forward=base.FeedForwardNames(
        up="intermediate.dense",
        down="output.dense",
        sum_norm="output.LayerNorm",
    ),
)


class MPNet(base.Family):
    """`encoder.layer.N` with `attention.attn.{q,k,v,o}`, `attention.LayerNorm`, `intermediate` and
    `output`; every layer adds the same bias by distance to its scores.
    """

    name = "mpnet"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "mpnet" and bool(base.layers_in(model, "encoder.layer"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "encoder.layer")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        found = {}
        for layer in self.layers(model):
            found[f"{layer}.attention.attn.o"] = base.Residual(f"{layer}.attention", argument=0)
            found[f"{layer}.output.dense"] = base.Residual(f"{layer}.output", argument=1)
        return found

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        geometry = base.LayerGeometry(
            head_size=config.hidden_size // config.num_attention_heads,
            activation=base.activation_of(config.hidden_act),
            position_bias=_position_bias,
        )
        layers = tuple(self.layers(model))
        stack = base.LayerStack(
            layers,
            LAYER,
            base.uniform(geometry, layers),
            hidden=config.hidden_size,
            reach=config.max_position_embeddings,
            bias_table="relative_attention_bias",
        )
        return (stack,)


def _position_bias(encoder: Any, reach: int) -> Tensor:
    """[heads, 2 reach - 1] by query minus key, from the encoder's own buckets."""
    key_minus_query = torch.arange(reach - 1, -reach, -1)
    table = encoder.relative_attention_bias
    buckets = encoder.relative_position_bucket(key_minus_query, num_buckets=table.num_embeddings)
    return table.weight.detach()[buckets].T
