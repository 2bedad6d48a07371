"""Llama decoders of Hugging Face transformers, and those with the same modules.

Touvron et al. 2023, arXiv:2302.13971 (Llama); Jiang et al. 2023, arXiv:2310.06825 (Mistral); Yang
et al. 2024, arXiv:2407.10671 (Qwen2); Yang et al. 2025, arXiv:2505.09388 (Qwen3); Bakouch et al.
2025, https://huggingface.co/blog/smollm3 (SmolLM3); IBM 2024,
https://github.com/ibm-granite/granite-3.0-language-models (Granite).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.models import base, positions

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.o_proj",
        input_norm="input_layernorm",
    ),
    feed_forward=base.FeedForwardNames(
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        input_norm="post_attention_layernorm",
    ),
)
# Qwen3 has norms of each head.
QWEN3_LAYER = replace(
    LAYER,
    attention=replace(LAYER.attention, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
)
TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite")


class Llama(base.Family):
    """`layers.N` with `self_attn.{q,k,v,o}_proj`, `mlp.{gate,up,down}_proj`, `input_layernorm` and
    `post_attention_layernorm`; residuals are added between the modules.
    """

    name = "llama"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) in TYPES and bool(base.layers_in(model, "layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "layers")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {
            f"{layer}.self_attn.o_proj": base.Residual(layer, 0) for layer in self.layers(model)
        }

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        layers = tuple(self.layers(model))
        granite = base.model_type(model) == "granite"
        geometry = base.LayerGeometry(
            head_size=head_size(config),
            activation=base.activation_of(config.hidden_act),
            scale=config.attention_multiplier if granite else None,
        )
        rotary = positions.rotary(model, layers[0])
        stack = base.LayerStack(
            layers,
            QWEN3_LAYER if base.model_type(model) == "qwen3" else LAYER,
            tuple(
                replace(geometry, window=window, rotary=rotary if rotates else None)
                for window, rotates in zip(
                    _windows(model, len(layers)), _rotated(config, len(layers)), strict=True
                )
            ),
            hidden=config.hidden_size,
            causal=True,
            reach=config.max_position_embeddings,
            embedding="embed_tokens",
            embedding_scale=config.embedding_multiplier if granite else 1.0,
            residual_scale=config.residual_multiplier if granite else 1.0,
            final_norm="norm",
        )
        return (stack,)


def head_size(config: Any) -> int:
    """Features of a head: an option of its own, or those of the hidden states shared out."""
    size: int = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return size


def _windows(model: nn.Module, layers: int) -> list[int]:
    """The window of each layer, or 0; families differ in which option of the config has it."""
    config: Any = model.config
    if base.model_type(model) in ("llama", "granite"):
        return [0] * layers
    if base.model_type(model) == "mistral":
        return [positions.window(config)] * layers
    if base.model_type(model) == "smollm3" and not config.use_sliding_window:
        return [0] * layers
    return positions.windows(config, layers)


def _rotated(config: Any, layers: int) -> list[bool]:
    """Which layers have rotary positions: in SmolLM3, some have none."""
    kinds = getattr(config, "no_rope_layers", None)  # 1 for layers that have them
    return [True] * layers if not kinds else [bool(kind) for kind in kinds[:layers]]
