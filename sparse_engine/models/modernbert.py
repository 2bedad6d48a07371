"""ModernBERT encoders of Hugging Face transformers (Warner et al. 2024, arXiv:2412.13663)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.models import base, positions

LAYER = base.LayerNames(
    attention=base.AttentionNames(query="attn.Wqkv", output="attn.Wo", input_norm="attn_norm"),
    feed_forward=base.FeedForwardNames(
        up="mlp.Wi", fused_gate=True, down="mlp.Wo", input_norm="mlp_norm"
    ),
)


class ModernBert(base.Family):
    """`layers.N` with `attn.Wqkv`, `attn.Wo`, `mlp.Wi`, `mlp.Wo`, `attn_norm` and `mlp_norm`."""

    name = "modernbert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "modernbert" and bool(base.layers_in(model, "layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "layers")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {f"{layer}.attn.Wo": base.Residual(layer, 0) for layer in self.layers(model)}

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        layers = tuple(self.layers(model))
        rotary = positions.rotary_by_type(model, layers[0])
        geometry = base.LayerGeometry(
            head_size=config.hidden_size // config.num_attention_heads,
            activation=base.activation_of(config.hidden_activation),
        )
        stack = base.LayerStack(
            layers,
            LAYER,
            tuple(
                # The distance sliding_window itself is still seen.
                replace(geometry, window=window + 1 if window else 0, rotary=rotary[kind])
                for window, kind in zip(
                    positions.windows(config, len(layers)),
                    positions.layer_types(config, len(layers)),
                    strict=True,
                )
            ),
            hidden=config.hidden_size,
            reach=config.max_position_embeddings,
            embedding="embeddings.tok_embeddings",
            input_module="embeddings",
            final_norm="final_norm",
        )
        return (stack,)
