"""GPT-2 decoders of Hugging Face transformers (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import base

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="attn.c_attn",
        output="attn.c_proj",
        input_norm="ln_1",
    ),
    feed_forward=base.FeedForwardNames(
        up="mlp.c_fc",
        down="mlp.c_proj",
        input_norm="ln_2",
    ),
)


class GPT2(base.Family):
    """`h.N` with `attn.c_attn` for queries, keys and values at once, `attn.c_proj`, `mlp.c_fc`,
    `mlp.c_proj`, `ln_1` and `ln_2`; its linear layers are Conv1D.
    """

    name = "gpt2"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "gpt2" and bool(base.layers_in(model, "h"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "h")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {f"{layer}.attn.c_proj": base.Residual(layer, 0) for layer in self.layers(model)}

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        for option in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            if getattr(config, option, False):
                raise UnsupportedModelError(f"{option} is not native")
        geometry = base.LayerGeometry(
            head_size=config.n_embd // config.n_head,
            activation=base.activation_of(config.activation_function),
            scale=None if config.scale_attn_weights else 1.0,
        )
        layers = tuple(self.layers(model))
        stack = base.LayerStack(
            layers,
            LAYER,
            base.uniform(geometry, layers),
            hidden=config.n_embd,
            causal=True,
            reach=config.n_positions,
            embedding="wte",
            positions="wpe",
            final_norm="ln_f",
        )
        return (stack,)
