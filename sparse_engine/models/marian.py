"""Marian translators of Hugging Face transformers (Junczys-Dowmunt et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.models.base import (
    AttentionNames,
    Family,
    FeedForwardNames,
    LayerGeometry,
    LayerNames,
    LayerStack,
    Residual,
    activation_of,
    layers_in,
    model_type,
    uniform,
)

ENCODER = LayerNames(
    attention=AttentionNames(
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.out_proj",
        sum_norm="self_attn_layer_norm",
    ),
    feed_forward=FeedForwardNames(up="fc1", down="fc2", sum_norm="final_layer_norm"),
)
DECODER = replace(
    ENCODER,
    cross_attention=AttentionNames(
        query="encoder_attn.q_proj",
        key="encoder_attn.k_proj",
        value="encoder_attn.v_proj",
        output="encoder_attn.out_proj",
        sum_norm="encoder_attn_layer_norm",
    ),
)


class Marian(Family):
    """`encoder.layers.N` and `decoder.layers.N`: post-norm, biases, sinusoidal positions."""

    name = "marian"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return model_type(model) == "marian" and bool(layers_in(model, "encoder.layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return layers_in(model, "encoder.layers") + layers_in(model, "decoder.layers")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        return {f"{layer}.self_attn.out_proj": Residual(layer, 0) for layer in self.layers(model)}

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        stacks = []
        for part, names in (("encoder", ENCODER), ("decoder", DECODER)):
            layers = tuple(layers_in(model, f"{part}.layers"))
            geometry = LayerGeometry(
                head_size=config.d_model // getattr(config, f"{part}_attention_heads"),
                activation=activation_of(config.activation_function),
            )
            stacks.append(
                LayerStack(
                    layers,
                    names,
                    uniform(geometry, layers),
                    hidden=config.d_model,
                    causal=part == "decoder",
                    reach=config.max_position_embeddings,
                    embedding="embed_tokens",
                    embedding_scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
                    positions="embed_positions",
                )
            )
        return tuple(stacks)
