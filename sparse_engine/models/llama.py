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
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    norm1="input_layernorm",
    norm2="post_attention_layernorm",
)
# Of each head, in Qwen3.
HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
# Rotary positions whose angles depend on nothing but the position.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn", "proportional")


class Llama(Family):
    """`layers.N` with `self_attn.{q,k,v,o}_proj`, `mlp.{gate,up,down}_proj`, `input_layernorm` and
    `post_attention_layernorm`; residuals are added between the modules.
    """

    name = "llama"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        types = ("llama", "mistral", "qwen2", "qwen3")
        return model_type(model) in types and bool(children_of(model, "layers"))

    def blocks(self, model: nn.Module) -> list[str]:
        return children_of(model, "layers")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        return {f"{block}.self_attn.o_proj": Residual(block, 0) for block in self.blocks(model)}

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        blocks = tuple(self.blocks(model))
        qwen3 = model_type(model) == "qwen3"
        stack = LayerStack(
            blocks=blocks,
            layer=replace(LAYER, **HEAD_NORMS) if qwen3 else LAYER,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head=getattr(config, "head_dim", None) or 0,
            inner=config.intermediate_size,
            activation=activation_of(config.hidden_act),
            norm_first=True,
            causal=True,
            window=_window(model),
            reach=config.max_position_embeddings,
            rotary=_rotary(model, blocks[0].split(".")[:-2]),
            embedding="embed_tokens",
            last="norm",
        )
        return (stack,)


def _window(model: nn.Module) -> int:
    """The sliding window of all layers, or 0; each family has its own way to say it."""
    config: Any = model.config
    if model_type(model) == "llama":
        return 0
    window = getattr(config, "sliding_window", None) or 0
    if type(window) is not int or window < 0:
        raise UnsupportedModelError(f"sliding_window {window!s:.40} is not native")
    if window >= config.max_position_embeddings:
        window = 0  # nothing is ever that far away
    if model_type(model) == "mistral":
        return window
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    if kinds == {"full_attention"}:
        return 0
    if kinds != {"sliding_attention"}:
        told = ", ".join(sorted(kinds))
        raise UnsupportedModelError(f"layer_types {told} are not native: all must be of one kind")
    return window


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
