"""Scaled dot-product attention with the masks and weights of torch.nn.MultiheadAttention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import UsageError


def multihead_attention(
    attention: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    dropout: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The forward pass of torch.nn.MultiheadAttention, with its arguments and results.

    The layers q_proj, k_proj and v_proj read exactly the tensors that the module is given.

    Args:
        attention: a module with these layers, out_proj, and the attributes num_heads, batch_first,
            dropout, bias_k, bias_v and add_zero_attn of torch's module.
        query: [queries, batch, embed_dim], batch first, or without batch, as the module is set.
        key: the same with kdim features.
        value: the same with vdim features.
        key_padding_mask: [batch, keys], or [keys] of one sequence; True or -inf at padding.
        need_weights: also return the attention weights.
        attn_mask: [queries, keys] or [batch x heads, queries, keys], True or -inf where hidden.
        average_attn_weights: average the weights over the heads.
        is_causal: a hint that `attn_mask` is causal.
        dropout: probability that a weight is dropped; by default the module's own in training.

    Returns:
        The output, in the layout of `query`, and the attention weights
        [batch, (heads,) queries, keys] or None.

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
    if dropout is None:
        dropout = attention.dropout if attention.training else 0.0
    mixed, weights = attend(q, k, v, mask, need_weights, dropout, is_causal)
    if weights is not None:
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights[0] if single else weights
    mixed = mixed[0] if single else mixed if attention.batch_first else mixed.transpose(0, 1)
    return attention.out_proj(mixed), weights


def _batch_first(attention: Any, x: Tensor) -> Tensor:
    """Any layout as [batch, length, features]."""
    return x[None] if x.dim() == 2 else x if attention.batch_first else x.transpose(0, 1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    need_weights: bool,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q kᵀ / sqrt(head) + mask) v (Vaswani et al. 2017).

    Args:
        q: [batch, heads, queries, head].
        k: [batch, heads, keys, head].
        v: [batch, heads, keys, head].
        mask: added to scores, broadcast to [batch, heads, queries, keys].
        need_weights: whether the softmax is returned.
        dropout: probability that a weight is dropped.
        is_causal: whether a query attends only to keys up to its position; without weights only,
            and instead of a mask.

    Returns:
        [batch, queries, heads x head], and the weights [batch, heads, queries, keys] or None.
    """
    if not need_weights:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        return mixed.transpose(1, 2).flatten(2), None
    scores = q * math.sqrt(1 / q.shape[-1]) @ k.transpose(-2, -1)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = F.dropout(weights, dropout)
    return (weights @ v).transpose(1, 2).flatten(2), weights


def merge_masks(
    attn_mask: Tensor | None,
    padding: Tensor | None,
    batch: int,
    heads: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """The sum of both masks, to be added to scores.

    Args:
        attn_mask: [queries, keys] or [batch x heads, queries, keys]; boolean (true hides) or added
            to scores.
        padding: [batch, keys] of the same two kinds.
        batch: number of sequences.
        heads: number of heads.
        dtype: of the scores.

    Returns:
        [batch or 1, heads or 1, queries or 1, keys], or None without masks.
    """
    mask = None
    if attn_mask is not None:
        mask = additive(attn_mask, dtype)
        mask = mask.view(batch, heads, *mask.shape[1:]) if mask.dim() == 3 else mask[None, None]
    if padding is not None:
        columns = additive(padding, dtype).view(batch, 1, 1, -1)
        mask = columns if mask is None else mask + columns
    return mask


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: -inf where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
