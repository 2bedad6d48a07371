"""Phi-3 decoders of Hugging Face transformers, and Phi-4 (Abdin et al. 2024, arXiv:2404.14219)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.models import base, llama, positions

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="self_attn.qkv_proj",
        output="self_attn.o_proj",
        input_norm="input_layernorm",
    ),
    feed_forward=base.FeedForwardNames(
        up="mlp.gate_up_proj",
        fused_gate=True,
        down="mlp.down_proj",
        input_norm="post_attention_layernorm",
    ),
)


class Phi3(llama.Llama):
    """Layers of Llama with `self_attn.qkv_proj` and `mlp.gate_up_proj`."""

    name = "phi3"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "phi3" and bool(base.layers_in(model, "layers"))

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        layers = tuple(self.layers(model))
        geometry = base.LayerGeometry(
            head_size=llama.head_size(config),
            activation=base.activation_of(config.hidden_act),
            group=config.num_attention_heads // config.num_key_value_heads,
            window=positions.window(config),
            rotary=positions.rotary(model, layers[0]),
        )
        stack = base.LayerStack(
            layers,
            LAYER,
            base.uniform(geometry, layers),
            hidden=config.hidden_size,
            causal=True,
            reach=config.max_position_embeddings,
            embedding="embed_tokens",
            final_norm="norm",
            fixed_heads=True,
        )
        return (stack,)
