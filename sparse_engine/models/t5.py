"""T5 encoders and decoders of Hugging Face transformers (Raffel et al. 2020, arXiv:1910.10683)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.models import base

ENCODER = base.LayerNames(
    attention=base.AttentionNames(
        query="layer.0.SelfAttention.q",
        key="layer.0.SelfAttention.k",
        value="layer.0.SelfAttention.v",
        output="layer.0.SelfAttention.o",
        input_norm="layer.0.layer_norm",
    ),
    feed_forward=base.FeedForwardNames(
        up="layer.1.DenseReluDense.wi",
        down="layer.1.DenseReluDense.wo",
        input_norm="layer.1.layer_norm",
    ),
)
DECODER = base.LayerNames(
    attention=ENCODER.attention,
    feed_forward=base.FeedForwardNames(
        up="layer.2.DenseReluDense.wi",
        down="layer.2.DenseReluDense.wo",
        input_norm="layer.2.layer_norm",
    ),
    cross_attention=base.AttentionNames(
        query="layer.1.EncDecAttention.q",
        key="layer.1.EncDecAttention.k",
        value="layer.1.EncDecAttention.v",
        output="layer.1.EncDecAttention.o",
        input_norm="layer.1.layer_norm",
    ),
)
# Position biases depend on distances, which have no limit. The table holds those below this one.
REACH = 4096


class T5(base.Family):
    """`encoder.block.N` and `decoder.block.N` with `layer.M` of attention or feed-forward each."""

    name = "t5"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return base.model_type(model) == "t5" and bool(_layers(model, "encoder"))

    def layers(self, model: nn.Module) -> list[str]:
        return _layers(model, "encoder") + _layers(model, "decoder")

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        """Every linear that writes to the stream does so in a `layer.M` that gets the stream."""
        found = {}
        for name, _ in model.named_modules():
            parent, _, child = name.rpartition(".")
            if child in ("o", "wo") and ".layer." in name:
                found[name] = base.Residual(parent.rpartition(".")[0], 0)
        return found

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        config: Any = model.config
        geometry = base.LayerGeometry(
            head_size=config.d_kv,
            activation=base.activation_of(config.dense_act_fn),
            scale=1.0,
            position_bias=distance_bias,
        )
        stacks = []
        for part, names in (("encoder", ENCODER), ("decoder", DECODER)):
            layers = tuple(_layers(model, part))
            if not layers:  # T5EncoderModel
                continue
            if config.is_gated_act:
                up = names.feed_forward.up
                gated = replace(names.feed_forward, gate=f"{up}_0", up=f"{up}_1")
                names = replace(names, feed_forward=gated)
            stacks.append(
                base.LayerStack(
                    layers,
                    names,
                    base.uniform(geometry, layers),
                    hidden=config.d_model,
                    causal=part == "decoder",
                    reach=REACH,
                    embedding="embed_tokens",
                    final_norm="final_layer_norm",
                    bias_table="block.0.layer.0.SelfAttention.relative_attention_bias",
                )
            )
        return tuple(stacks)


def distance_bias(stack: Any, reach: int) -> Tensor:
    """The first layer's bias by query minus key, [heads, 2 reach - 1], which all layers share."""
    attention = stack.block[0].layer[0].SelfAttention
    ahead = -torch.arange(1 - reach, reach)
    buckets = attention._relative_position_bucket(
        ahead,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    table: Tensor = attention.relative_attention_bias.weight
    return table[buckets].t()


def _layers(model: nn.Module, part: str) -> list[str]:
    names = dict(model.named_modules())
    for name in names:
        if f".{name}".endswith(f".{part}.block"):
            return [f"{name}.{child}" for child, _ in names[name].named_children()]
    return []
