"""EuroBERT encoders of Hugging Face transformers (Boizard et al. 2025, arXiv:2503.05500)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.models import base, llama, positions


class EuroBert(llama.Llama):
    """The layers of Llama as an encoder."""

    name = "eurobert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "eurobert" and bool(base.layers_in(model, "layers"))

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        layers = tuple(self.layers(model))
        geometry = base.LayerGeometry(
            head_size=llama.head_size(config),
            activation=base.activation_of(config.hidden_act),
            rotary=positions.rotary(model, layers[0]),
        )
        stack = base.LayerStack(
            layers,
            llama.LAYER,
            base.uniform(geometry, layers),
            hidden=config.hidden_size,
            reach=config.max_position_embeddings,
            embedding="embed_tokens",
            final_norm="norm",
        )
        return (stack,)
