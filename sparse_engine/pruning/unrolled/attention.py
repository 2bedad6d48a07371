"""torch.nn.MultiheadAttention as linear layers: q_proj, k_proj, v_proj and its own out_proj."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sparse_engine.modules.attention import multihead_attention
from sparse_engine.pruning.unrolled.base import Kind, ParameterViews

WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def layers(attention: nn.MultiheadAttention, views: ParameterViews) -> dict[str, nn.Module]:
    """The projections of queries, keys and values: thirds of in_proj_weight, or parameters."""
    weights: list[Tensor]
    if attention.in_proj_weight is not None:
        weights = list(attention.in_proj_weight.detach().chunk(3))
    else:
        weights = [getattr(attention, name) for name in WEIGHTS]
    bias = attention.in_proj_bias
    biases = [None] * 3 if bias is None else bias.detach().chunk(3)
    parts = zip("qkv", weights, biases, strict=True)
    return {f"{name}_proj": views.linear(weight, bias) for name, weight, bias in parts}


def refusal(attention: nn.MultiheadAttention) -> str:
    """Modules whose out_proj is not a plain linear layer are left: torch only reads its weight."""
    kind = type(attention.out_proj)
    if kind in (NonDynamicallyQuantizableLinear, nn.Linear):
        return ""
    return f"its out_proj is a {kind.__name__}"


ATTENTION = Kind(
    matches=lambda module: type(module) is nn.MultiheadAttention,
    base=(nn.MultiheadAttention,),
    parameters=lambda module: ["in_proj_weight", *WEIGHTS, "in_proj_bias"],
    layers=layers,
    forward=multihead_attention,
    refusal=refusal,
)
