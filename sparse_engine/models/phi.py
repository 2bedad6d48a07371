"""Phi decoders of Hugging Face transformers, versions 1 to 2 (Li et al. 2023, arXiv:2309.05463)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import base, llama, positions

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.dense",
        input_norm="input_layernorm",
    ),
    feed_forward=base.FeedForwardNames(up="mlp.fc1", down="mlp.fc2", input_norm="input_layernorm"),
    parallel=True,
)


class Phi(base.Family):
    """`layers.N` with `self_attn.{q,k,v}_proj`, `self_attn.dense`, `mlp.fc1`, `mlp.fc2`, and one
    `input_layernorm` of both; the sum of all three is the next residual stream.
    """

    name = "phi"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "phi" and bool(base.layers_in(model, "layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "layers")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {f"{layer}.self_attn.dense": base.Residual(layer, 0) for layer in self.layers(model)}

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        if config.qk_layernorm:
            raise UnsupportedModelError("qk_layernorm is not native")
        layers = tuple(self.layers(model))
        geometry = base.LayerGeometry(
            head_size=llama.head_size(config),
            activation=base.activation_of(config.hidden_act),
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
            final_norm="final_layernorm",
        )
        return (stack,)
