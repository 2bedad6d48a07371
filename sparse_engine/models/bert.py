"""BERT encoders of Hugging Face transformers, and those with the same modules.

Devlin et al. 2019, arXiv:1810.04805; sentence-transformers' MiniLM models are BERTs too.
"""

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
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    norm1="attention.output.LayerNorm",
    norm2="output.LayerNorm",
)


class Bert(Family):
    """`encoder.layer.N` with `attention.self.{query,key,value}`, `attention.output`,
    `intermediate` and `output`; the two outputs compute LayerNorm(dense(x) + residual).
    """

    name = "bert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        types = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
        return model_type(model) in types and bool(children_of(model, "encoder.layer"))

    def blocks(self, model: nn.Module) -> list[str]:
        return children_of(model, "encoder.layer")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        parents = [
            f"{block}.{part}"
            for block in self.blocks(model)
            for part in ("attention.output", "output")
        ]
        return {f"{parent}.dense": Residual(parent, argument=1) for parent in parents}

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise UnsupportedModelError("is_decoder and add_cross_attention have no native encoder")
        kind = getattr(config, "position_embedding_type", None) or "absolute"
        if kind != "absolute":
            raise UnsupportedModelError(f"position_embedding_type {kind!r} has no native encoder")
        stack = LayerStack(
            blocks=tuple(self.blocks(model)),
            layer=LAYER,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            inner=config.intermediate_size,
            activation=activation_of(config.hidden_act),
        )
        return (stack,)
