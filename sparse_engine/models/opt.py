"""OPT decoders of Hugging Face transformers (Zhang et al. 2022, arXiv:2205.01068)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import base

LINEARS: dict[str, Any] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.out_proj",
}
BEFORE = base.LayerNames(
    base.AttentionNames(**LINEARS, input_norm="self_attn_layer_norm"),
    base.FeedForwardNames("fc1", "fc2", input_norm="final_layer_norm"),
)
AFTER = base.LayerNames(
    base.AttentionNames(**LINEARS, sum_norm="self_attn_layer_norm"),
    base.FeedForwardNames("fc1", "fc2", sum_norm="final_layer_norm"),
)


class OPT(base.Family):
    """`decoder.layers.N` with `self_attn.{q,k,v,out}_proj`, `fc1`, `fc2`, `self_attn_layer_norm`
    and `final_layer_norm`, before or after the sublayers.
    """

    name = "opt"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "opt" and bool(base.layers_in(model, "decoder.layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "decoder.layers")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {
            f"{layer}.self_attn.out_proj": base.Residual(layer, 0) for layer in self.layers(model)
        }

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        if config.word_embed_proj_dim != config.hidden_size:
            raise UnsupportedModelError("word_embed_proj_dim is not native")
        before = config.do_layer_norm_before
        geometry = base.LayerGeometry(
            head_size=config.hidden_size // config.num_attention_heads,
            activation=base.activation_of(config.activation_function),
        )
        layers = tuple(self.layers(model))
        stack = base.LayerStack(
            layers,
            BEFORE if before else AFTER,
            base.uniform(geometry, layers),
            hidden=config.hidden_size,
            causal=True,
            reach=config.max_position_embeddings,
            embedding="embed_tokens",
            positions="embed_positions",
            position_offset=2,
            positions_from_mask=True,
            final_norm="final_layer_norm"
            if before and not config._remove_final_layer_norm
            else None,
        )
        return (stack,)
