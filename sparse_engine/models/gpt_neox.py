"""GPT-NeoX decoders of Hugging Face transformers (Black et al. 2022, arXiv:2204.06745), such as
Pythia (Biderman et al. 2023, arXiv:2304.01373).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.models import base, positions

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="attention.query_key_value",
        interleaved=True,
        output="attention.dense",
        input_norm="input_layernorm",
    ),
    feed_forward=base.FeedForwardNames(
        up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", input_norm="post_attention_layernorm"
    ),
)


class GPTNeoX(base.Family):
    """`layers.N` with `attention.query_key_value`, head by head, `attention.dense`,
    `mlp.dense_h_to_4h`, `mlp.dense_4h_to_h`, `input_layernorm` and `post_attention_layernorm`.
    """

    name = "gpt-neox"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "gpt_neox" and bool(base.layers_in(model, "layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "layers")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {f"{layer}.attention.dense": base.Residual(layer, 0) for layer in self.layers(model)}

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        layers = tuple(self.layers(model))
        geometry = base.LayerGeometry(
            head_size=config.hidden_size // config.num_attention_heads,
            activation=base.activation_of(config.hidden_act),
            rotary=positions.rotary(model, layers[0]),
        )
        stack = base.LayerStack(
            layers,
            replace(LAYER, parallel=config.use_parallel_residual),
            base.uniform(geometry, layers),
            hidden=config.hidden_size,
            causal=True,
            reach=config.max_position_embeddings,
            embedding="embed_in",
            final_norm="final_layer_norm",
        )
        return (stack,)
