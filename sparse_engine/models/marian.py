"""Marian translators of Hugging Face transformers (Junczys-Dowmunt et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.models import base

ENCODER = base.LayerNames(
    attention=base.AttentionNames(
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.out_proj",
        sum_norm="self_attn_layer_norm",
    ),
    feed_forward=base.FeedForwardNames(up="fc1", down="fc2", sum_norm="final_layer_norm"),
)
DECODER = replace(
    ENCODER,
    cross_attention=base.AttentionNames(
        query="encoder_attn.q_proj",
        key="encoder_attn.k_proj",
        value="encoder_attn.v_proj",
        output="encoder_attn.out_proj",
        sum_norm="encoder_attn_layer_norm",
    ),
)


class Marian(base.Family):
    """`encoder.layers.N` and `decoder.layers.N`: post-norm, biases, sinusoidal positions."""

    name = "marian"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "marian" and bool(base.layers_in(model, "encoder.layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "encoder.layers") + base.layers_in(model, "decoder.layers")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {
            f"{layer}.self_attn.out_proj": base.Residual(layer, 0) for layer in self.layers(model)
        }

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        stacks = []
        for part, names in (("encoder", ENCODER), ("decoder", DECODER)):
            layers = tuple(base.layers_in(model, f"{part}.layers"))
            geometry = base.LayerGeometry(
                head_size=config.d_model // getattr(config, f"{part}_attention_heads"),
                activation=base.activation_of(config.activation_function),
            )
            stacks.append(
                base.LayerStack(
                    layers,
                    names,
                    base.uniform(geometry, layers),
                    hidden=config.d_model,
                    causal=part == "decoder",
                    reach=config.max_position_embeddings,
                    embedding="embed_tokens",
                    embedding_scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
                    positions="embed_positions",
                )
            )
        return tuple(stacks)
