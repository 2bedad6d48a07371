"""SparseMultiheadAttention: torch.nn.MultiheadAttention with sparse projections. Inference only."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.attention import attend, merge_masks
from sparse_engine.modules.effective import check_plain
from sparse_engine.modules.linears import linear_of
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.parts import ComposedModule, as_dense_linear
from sparse_engine.nn.placeholder import placeholder_weight


class SparseMultiheadAttention(ComposedModule):
    """out_proj(softmax(q kᵀ / sqrt(head) + mask) v) (Vaswani et al. 2017), heads side by side.

    Queries, keys and values have a SparseLinear each, q_proj, k_proj and v_proj, so that cross
    attention computes only the projections that it uses.

    >>> SparseMultiheadAttention.from_dense(torch.nn.MultiheadAttention(512, 8), "csr")
    """

    # torch's own encoder layers check these before they read dense weights past the modules.
    in_proj_bias = None
    _qkv_same_embed_dim = False
    out_proj: nn.Module
    dropout = 0.0
    """Of the dense layer that it was made from; not applied here."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        """An all-zero layer with the signature of torch.nn.MultiheadAttention.

        Raises:
            UsageError: embed_dim is not a multiple of num_heads.
        """
        super().__init__()
        if embed_dim % num_heads:
            raise UsageError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.batch_first = embed_dim, num_heads, batch_first
        self.q_proj = SparseLinear(embed_dim, embed_dim, bias)
        self.k_proj = SparseLinear(kdim or embed_dim, embed_dim, bias)
        self.v_proj = SparseLinear(vdim or embed_dim, embed_dim, bias)
        self.out_proj = SparseLinear(embed_dim, embed_dim, bias)

    @classmethod
    def unpacked(cls, attention: nn.MultiheadAttention) -> Self:
        """See ComposedModule.unpacked; add_bias_kv and add_zero_attn are not supported."""
        check_plain(attention)
        if attention.bias_k is not None or attention.add_zero_attn:
            raise UsageError("add_bias_kv and add_zero_attn are not supported")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.embed_dim, layer.num_heads = attention.embed_dim, attention.num_heads
        layer.batch_first, layer.dropout = attention.batch_first, attention.dropout
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = tuple(getattr(attention, f"{name}_proj_weight") for name in "qkv")
        given = attention.in_proj_bias
        biases = (None, None, None) if given is None else given.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            setattr(layer, f"{name}_proj", linear_of(weight, bias))
        layer.out_proj = linear_of(attention.out_proj.weight, attention.out_proj.bias)
        return layer.train(attention.training)

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.MultiheadAttention:
        """A torch.nn.MultiheadAttention with the same weights, in `dtype` or the weights' own."""
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        q, k, v, out = (as_dense_linear(self.get_submodule(name), dtype) for name in names)
        attention = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            dropout=self.dropout,
            bias=out.bias is not None,
            kdim=k.in_features,
            vdim=v.in_features,
            batch_first=self.batch_first,
            device=out.weight.device,
            dtype=out.weight.dtype,
        ).requires_grad_(False)
        if attention.in_proj_weight is not None:
            attention.in_proj_weight.copy_(torch.cat([q.weight, k.weight, v.weight]))
        else:
            for name, part in zip("qkv", (q, k, v), strict=True):
                getattr(attention, f"{name}_proj_weight").copy_(part.weight)
        attention.out_proj.weight.copy_(out.weight)
        if out.bias is not None:
            attention.in_proj_bias.copy_(torch.cat([q.bias, k.bias, v.bias]))
            attention.out_proj.bias.copy_(out.bias)
        return attention.train(self.training)

    @property
    def in_proj_weight(self) -> Tensor:
        """A tensor without values.

        The fast path of torch.nn.TransformerEncoder would read them; it is not taken for tensors
        of other classes than torch's own.
        """
        weight = self.q_proj.weight
        return placeholder_weight((3 * self.embed_dim, self.embed_dim), weight.dtype, weight.device)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of `query` over `key` and `value`.

        Shapes are [seq, batch, features], batch first, or [seq, features] of one sequence.

        Args:
            query: features `embed_dim`.
            key: features `kdim`.
            value: features `vdim`.
            key_padding_mask: [batch, keys], or [keys] of one sequence. Masks are boolean (true
                hides) or added to scores.
            need_weights: whether the attention weights are returned.
            attn_mask: [queries, keys] or [batch x heads, queries, keys].
            average_attn_weights: whether the weights are averaged over the heads.
            is_causal: a hint that attn_mask is causal; without it the causal mask is applied.

        Returns:
            The output, and the weights [batch, (heads,) queries, keys] or None.
        """
        single = query.dim() == 2
        if single:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            part(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part, t in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        if is_causal and attn_mask is None:
            size = (q.shape[2], k.shape[2])
            attn_mask = torch.ones(size, dtype=torch.bool, device=q.device).triu(1)
        mask = merge_masks(attn_mask, key_padding_mask, len(q), self.num_heads, q.dtype)
        mixed, weights = attend(q, k, v, mask, need_weights)
        y = self.out_proj(mixed)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return y[0], None if weights is None else weights[0]
        return (y if self.batch_first else y.transpose(0, 1)), weights
