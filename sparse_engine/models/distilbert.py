"""DistilBERT of Hugging Face transformers: a BERT of half the layers (Sanh et al. 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.models.base import (
    AttentionNames,
    Family,
    FeedForwardNames,
    LayerGeometry,
    LayerNames,
    LayerStack,
    Residual,
    activation_of,
    layers_in,
    model_type,
    uniform,
)

LAYER = LayerNames(
    attention=AttentionNames(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        sum_norm="sa_layer_norm",
    ),
    feed_forward=FeedForwardNames(
        up="ffn.lin1",
        down="ffn.lin2",
        sum_norm="output_layer_norm",
    ),
)


class DistilBert(Family):
    """`transformer.layer.N` with `attention.{q,k,v,out}_lin`, `sa_layer_norm`, `ffn.lin1`,
    `ffn.lin2` and `output_layer_norm`; the sums are computed between the modules.
    """

    name = "distilbert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return model_type(model) == "distilbert" and bool(layers_in(model, "transformer.layer"))

    def layers(self, model: nn.Module) -> list[str]:
        return layers_in(model, "transformer.layer")

    def residuals(self, model: nn.Module) -> dict[str, Residual]:
        return {f"{layer}.attention.out_lin": Residual(layer, 0) for layer in self.layers(model)}

    def stacks(self, model: nn.Module) -> tuple[LayerStack, ...]:
        config: Any = model.config
        geometry = LayerGeometry(
            head_size=config.dim // config.n_heads,
            activation=activation_of(config.activation),
        )
        layers = tuple(self.layers(model))
        return (LayerStack(layers, LAYER, uniform(geometry, layers), config.dim),)
