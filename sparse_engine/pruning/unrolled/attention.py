"""torch.nn.MultiheadAttention as linear layers: q_proj, k_proj, v_proj and its own out_proj."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sparse_engine.errors import UsageError
from sparse_engine.modules.attention import attend, merge_masks
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


def forward(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The forward pass of torch.nn.MultiheadAttention, with its arguments and results.

    The layers read exactly the tensors that the module is given. So layers that read the same
    tensor share their statistics, and the shape of padding masks matches.

    Args:
        attention: the unrolled module.
        query: [queries, batch, embed_dim], batch first, or without batch, as the module is set.
        key: the same with kdim features.
        value: the same with vdim features.
        key_padding_mask: [batch, keys], True or -inf at padding.
        need_weights: also return the attention weights.
        attn_mask: [queries, keys] or [batch x heads, queries, keys], True or -inf where hidden.
        average_attn_weights: average the weights over the heads.
        is_causal: a hint that `attn_mask` is causal.

    Returns:
        The output, in the layout of `query`, and the attention weights or None.

    Raises:
        UsageError: if is_causal is given without attn_mask.
    """
    if is_causal and attn_mask is None:
        raise UsageError("is_causal is a hint about attn_mask; give attn_mask with it")
    single = query.dim() == 2
    q, k, v = (
        _batch_first(attention, attention.get_submodule(f"{name}_proj")(x))
        for name, x in zip("qkv", (query, key, value), strict=True)
    )
    if is_causal and key_padding_mask is None and not need_weights:
        attn_mask = None
    else:
        is_causal = False
    mask = merge_masks(attn_mask, key_padding_mask, len(q), attention.num_heads, q.dtype)
    if attention.bias_k is not None and attention.bias_v is not None:
        k = torch.cat([k, attention.bias_k.expand(len(k), 1, -1)], 1)
        v = torch.cat([v, attention.bias_v.expand(len(v), 1, -1)], 1)
    if attention.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    if mask is not None:
        mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
    q, k, v = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    dropout = attention.dropout if attention.training else 0.0
    mixed, weights = attend(q, k, v, mask, need_weights, dropout, is_causal)
    if weights is not None:
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights[0] if single else weights
    mixed = mixed[0] if single else mixed if attention.batch_first else mixed.transpose(0, 1)
    return attention.out_proj(mixed), weights


def _batch_first(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Any layout as [batch, length, features]."""
    return x[None] if x.dim() == 2 else x if attention.batch_first else x.transpose(0, 1)


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
    forward=forward,
    refusal=refusal,
)
