"""BERT encoders of Hugging Face transformers, and those with the same modules.

Devlin et al. 2019, arXiv:1810.04805; sentence-transformers' MiniLM models are BERTs too.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import base

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        sum_norm="attention.output.LayerNorm",
    ),
    feed_forward=base.FeedForwardNames(
        up="intermediate.dense",
        down="output.dense",
        sum_norm="output.LayerNorm",
    ),
)


class Bert(base.Family):
    """`encoder.layer.N` with `attention.self.{query,key,value}`, `attention.output`,
    `intermediate` and `output`; the two outputs compute LayerNorm(dense(x) + residual).
    """

    name = "bert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        types = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
        return base.model_type(model) in types and bool(base.layers_in(model, "encoder.layer"))

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "encoder.layer")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        parents = [
            f"{layer}.{part}"
            for layer in self.layers(model)
            for part in ("attention.output", "output")
        ]
        return {f"{parent}.dense": base.Residual(parent, argument=1) for parent in parents}

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise UnsupportedModelError("is_decoder and add_cross_attention have no native encoder")
        kind = getattr(config, "position_embedding_type", None) or "absolute"
        if kind != "absolute":
            raise UnsupportedModelError(f"position_embedding_type {kind!r} has no native encoder")
        geometry = base.LayerGeometry(
            head_size=config.hidden_size // config.num_attention_heads,
            activation=base.activation_of(config.hidden_act),
        )
        layers = tuple(self.layers(model))
        return (base.LayerStack(layers, LAYER, base.uniform(geometry, layers), config.hidden_size),)
