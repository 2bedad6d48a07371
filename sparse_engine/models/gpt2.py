"""GPT-2 decoders of Hugging Face transformers (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

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
    query="attn.c_attn",
    key=None,
    value=None,
    output="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    norm1="ln_1",
    norm2="ln_2",
)


class GPT2(Family):
    """`h.N` with `attn.c_attn` for queries, keys and values at once, `attn.c_proj`, `mlp.c_fc`,
    `mlp.c_proj`, `ln_1` and `ln_2`; its linear layers are Conv1D.
    """

    name = "gpt2"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return model_type(model) == "gpt2" and bool(children_of(model, "h"))

    def blocks(self, model: nn.Module) -> list[str]:
        return children_of(model, "h")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        return {f"{block}.attn.c_proj": Residual(block, 0) for block in self.blocks(model)}

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        for option in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            if getattr(config, option, False):
                raise UnsupportedModelError(f"{option} is not native")
        stack = LayerStack(
            blocks=tuple(self.blocks(model)),
            layer=LAYER,
            hidden=config.n_embd,
            heads=config.n_head,
            inner=config.n_inner or 4 * config.n_embd,
            activation=activation_of(config.activation_function),
            norm_first=True,
            scale=None if config.scale_attn_weights else 1.0,
            causal=True,
            reach=config.n_positions,
            embedding="wte",
            positions="wpe",
            last="ln_f",
        )
        return (stack,)
