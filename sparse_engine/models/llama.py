"""Llama decoders of Hugging Face transformers, and those with the same modules: Mistral, Qwen2 and
Qwen3 (Touvron et al. 2023, arXiv:2302.13971; Jiang et al. 2023, arXiv:2310.06825; Yang et al. 2024,
arXiv:2407.10671; Yang et al. 2025, arXiv:2505.09388).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import base

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
# Rotary positions whose angles depend on nothing but the position.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn", "proportional")


class Llama(base.Family):
    """`layers.N` with `self_attn.{q,k,v,o}_proj`, `mlp.{gate,up,down}_proj`, `input_layernorm` and
    `post_attention_layernorm`; residuals are added between the modules.
    """

    name = "llama"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        types = ("llama", "mistral", "qwen2", "qwen3")
        return base.model_type(model) in types and bool(base.layers_in(model, "layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "layers")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {
            f"{layer}.self_attn.o_proj": base.Residual(layer, 0) for layer in self.layers(model)
        }

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        layers = tuple(self.layers(model))
        geometry = base.LayerGeometry(
            head_size=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            activation=base.activation_of(config.hidden_act),
            rotary=_rotary(model, layers[0].split(".")[:-2]),
        )
        stack = base.LayerStack(
            layers,
            QWEN3_LAYER if base.model_type(model) == "qwen3" else LAYER,
            tuple(replace(geometry, window=w) for w in _windows(model, len(layers))),
            hidden=config.hidden_size,
            causal=True,
            reach=config.max_position_embeddings,
            embedding="embed_tokens",
            final_norm="norm",
        )
        return (stack,)


def _windows(model: nn.Module, layers: int) -> list[int]:
    """The sliding window of each layer, or 0; families differ in which option of the config
    has it.
    """
    config: Any = model.config
    if base.model_type(model) == "llama":
        return [0] * layers
    window = getattr(config, "sliding_window", None) or 0
    if type(window) is not int or window < 0:
        raise UnsupportedModelError(f"sliding_window {window!s:.40} is not native")
    if window >= config.max_position_embeddings:
        window = 0  # no key is ever that far away
    if base.model_type(model) == "mistral":
        return [window] * layers
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * layers)
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModelError(f"layer_types {kind!s:.40} is not native")
    if len(kinds) < layers:
        raise UnsupportedModelError(f"layer_types has {len(kinds)} entries for {layers} layers")
    return [window if kind == "sliding_attention" else 0 for kind in kinds[:layers]]


def _rotary(model: nn.Module, decoder: list[str]) -> Any:
    module: Any = model.get_submodule(".".join([*decoder, "rotary_emb"]))
    kind = getattr(module, "rope_type", "default")
    if kind not in FIXED_ROTARY:
        raise UnsupportedModelError(f"rope_type {kind!r} is not native")
    return rotary_tables


def rotary_tables(decoder: Any, positions: int) -> tuple[Tensor, Tensor]:
    """The model's own angles: cosines and sines, each [positions, rotated features / 2]."""
    ids = torch.arange(positions)[None]
    cosines, sines = decoder.rotary_emb(torch.zeros(1, dtype=torch.float32), ids)
    half = cosines.shape[-1] // 2
    return cosines[0, :, :half], sines[0, :, :half]
