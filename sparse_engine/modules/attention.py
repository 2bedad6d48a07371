"""Scaled dot-product attention with the masks and weights of torch.nn.MultiheadAttention."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


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
