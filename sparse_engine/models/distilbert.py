"""DistilBERT of Hugging Face transformers: a BERT of half the layers (Sanh et al. 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

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
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    up="ffn.lin1",
    down="ffn.lin2",
    norm1="sa_layer_norm",
    norm2="output_layer_norm",
)


class DistilBert(Family):
    """`transformer.layer.N` with `attention.{q,k,v,out}_lin`, `sa_layer_norm`, `ffn.lin1`,
    `ffn.lin2` and `output_layer_norm`; the sums are computed between the modules.
    """

    name = "distilbert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return model_type(model) == "distilbert" and bool(children_of(model, "transformer.layer"))

    def blocks(self, model: nn.Module) -> list[str]:
        return children_of(model, "transformer.layer")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        return {f"{block}.attention.out_lin": Residual(block, 0) for block in self.blocks(model)}

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        stack = LayerStack(
            blocks=tuple(self.blocks(model)),
            layer=LAYER,
            hidden=config.dim,
            heads=config.n_heads,
            inner=config.hidden_dim,
            activation=activation_of(config.activation),
        )
        return (stack,)
