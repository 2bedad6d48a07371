"""DistilBERT of Hugging Face transformers: a BERT of half the layers (Sanh et al. 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.models import base

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        sum_norm="sa_layer_norm",
    ),
    feed_forward=base.FeedForwardNames(
        up="ffn.lin1",
        down="ffn.lin2",
        sum_norm="output_layer_norm",
    ),
)


class DistilBert(base.Family):
    """`transformer.layer.N` with `attention.{q,k,v,out}_lin`, `sa_layer_norm`, `ffn.lin1`,
    `ffn.lin2` and `output_layer_norm`; the sums are computed between the modules.
    """

    name = "distilbert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "distilbert" and bool(
            base.layers_in(model, "transformer.layer")
        )

    def layers(self, model: nn.Module) -> list[str]:
        return base.layers_in(model, "transformer.layer")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return {
            f"{layer}.attention.out_lin": base.Residual(layer, 0) for layer in self.layers(model)
        }

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        geometry = base.LayerGeometry(
            head_size=config.dim // config.n_heads,
            activation=base.activation_of(config.activation),
        )
        layers = tuple(self.layers(model))
        return (base.LayerStack(layers, LAYER, base.uniform(geometry, layers), config.dim),)
