"""Nomic BERT encoders of Hugging Face transformers (Nussbaum et al. 2024, arXiv:2402.01613)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.models import base, llama, positions

LAYER = base.LayerNames(
    attention=base.AttentionNames(
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.o_proj",
        sum_norm="post_attention_layernorm",
    ),
    feed_forward=base.FeedForwardNames(
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        sum_norm="post_mlp_layernorm",
    ),
)


class NomicBert(llama.Llama):
    """The linear layers of Llama, with norms after the sums."""

    name = "nomic-bert"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "nomic_bert" and bool(base.layers_in(model, "layers"))

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
            LAYER,
            base.uniform(geometry, layers),
            hidden=config.hidden_size,
            reach=config.max_position_embeddings,
            embedding="embeddings.word_embeddings",
            input_module="embeddings",
        )
        return (stack,)
