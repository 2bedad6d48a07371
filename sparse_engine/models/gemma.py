"""Gemma decoders of Hugging Face transformers, versions 1, 2 and 3 of text.

Gemma Team 2024, arXiv:2403.08295 and arXiv:2408.00118; 2025, arXiv:2503.19786.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import base, llama, positions

# Gemma 2 has norms before and after each sublayer, Gemma 3 also of each head.
GEMMA2_LAYER = replace(
    llama.LAYER,
    attention=replace(llama.LAYER.attention, output_norm="post_attention_layernorm"),
    feed_forward=replace(
        llama.LAYER.feed_forward,
        input_norm="pre_feedforward_layernorm",
        output_norm="post_feedforward_layernorm",
    ),
)
GEMMA3_LAYER = replace(
    GEMMA2_LAYER,
    attention=replace(
        GEMMA2_LAYER.attention, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
    ),
)
LAYERS = {"gemma": llama.LAYER, "gemma2": GEMMA2_LAYER, "gemma3_text": GEMMA3_LAYER}


class Gemma(llama.Llama):
    """The modules of Llama. RMS norms multiply by 1 + weight; the embedding multiplies its rows."""

    name = "gemma"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) in LAYERS and bool(base.layers_in(model, "layers"))

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        if getattr(config, "use_bidirectional_attention", None):
            raise UnsupportedModelError("use_bidirectional_attention is not native")
        layers = tuple(self.layers(model))
        kinds = positions.layer_types(config, len(layers))
        scalar = getattr(config, "query_pre_attn_scalar", None)
        geometry = base.LayerGeometry(
            head_size=llama.head_size(config),
            activation=base.activation_of(
                getattr(config, "hidden_activation", None) or config.hidden_act
            ),
            scale=None if scalar is None else scalar**-0.5,
            soft_cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        )
        if base.model_type(model) == "gemma3_text":
            rotary = positions.rotary_by_type(model, layers[0])
        else:
            rotary = dict.fromkeys(kinds, positions.rotary(model, layers[0]))
        stack = base.LayerStack(
            layers,
            LAYERS[base.model_type(model)],
            tuple(
                replace(geometry, window=window, rotary=rotary[kind])
                for window, kind in zip(positions.windows(config, len(layers)), kinds, strict=True)
            ),
            hidden=config.hidden_size,
            causal=True,
            reach=config.max_position_embeddings,
            embedding="embed_tokens",
            norm_offset=1.0,
            final_norm="norm",
        )
        return (stack,)
