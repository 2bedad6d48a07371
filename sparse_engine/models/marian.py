"""Marian translators of Hugging Face transformers (Junczys-Dowmunt et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.models.base import (
    Family,
    LayerNames,
    LayerStack,
    Residual,
    activation_of,
    children_of,
    model_type,
)

ENCODER = LayerNames(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    norm1="self_attn_layer_norm",
    up="fc1",
    down="fc2",
    norm2="final_layer_norm",
)
DECODER = replace(
    ENCODER,
    cross_query="encoder_attn.q_proj",
    cross_key="encoder_attn.k_proj",
    cross_value="encoder_attn.v_proj",
    cross_output="encoder_attn.out_proj",
    cross_norm="encoder_attn_layer_norm",
)


class Marian(Family):
    """`encoder.layers.N` and `decoder.layers.N`: post-norm, biases, sinusoidal positions."""

    name = "marian"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return model_type(model) == "marian" and bool(children_of(model, "encoder.layers"))

    def blocks(self, model: nn.Module) -> list[str]:
        return children_of(model, "encoder.layers") + children_of(model, "decoder.layers")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        return {f"{block}.self_attn.out_proj": Residual(block, 0) for block in self.blocks(model)}

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        stacks = []
        for part, names in (("encoder", ENCODER), ("decoder", DECODER)):
            stacks.append(
                LayerStack(
                    blocks=tuple(children_of(model, f"{part}.layers")),
                    layer=names,
                    hidden=config.d_model,
                    heads=getattr(config, f"{part}_attention_heads"),
                    inner=getattr(config, f"{part}_ffn_dim"),
                    activation=activation_of(config.activation_function),
                    causal=part == "decoder",
                    reach=config.max_position_embeddings,
                    embedding="embed_tokens",
                    embedding_scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
                    positions="embed_positions",
                )
            )
        return tuple(stacks)
