"""SparseMultiheadAttention: torch.nn.MultiheadAttention with sparse projections. Inference only."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.attention import multihead_attention
from sparse_engine.modules.cut_attention import CutMultiheadAttention
from sparse_engine.modules.effective import check_plain
from sparse_engine.modules.linears import linear_of
from sparse_engine.modules.placeholder import placeholder_weight
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.parts import ComposedModule, as_dense_linear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


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
    bias_k = bias_v = None
    add_zero_attn = False

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
        self.head_dim = embed_dim // num_heads
        self.q_proj = SparseLinear(embed_dim, embed_dim, bias)
        self.k_proj = SparseLinear(kdim or embed_dim, embed_dim, bias)
        self.v_proj = SparseLinear(vdim or embed_dim, embed_dim, bias)
        self.out_proj = SparseLinear(embed_dim, embed_dim, bias)

    @classmethod
    def unpacked(cls, attention: nn.MultiheadAttention | CutMultiheadAttention) -> Self:
        """See ComposedModule.unpacked; add_bias_kv and add_zero_attn are not supported."""
        check_plain(attention)
        if attention.bias_k is not None or attention.add_zero_attn:
            raise UsageError("add_bias_kv and add_zero_attn are not supported")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.embed_dim, layer.num_heads = attention.embed_dim, attention.num_heads
        layer.head_dim = attention.head_dim
        layer.batch_first, layer.dropout = attention.batch_first, attention.dropout
        if isinstance(attention, CutMultiheadAttention):
            for name in PROJECTIONS:
                projection: Any = attention.get_submodule(name)
                setattr(layer, name, linear_of(projection.weight, projection.bias))
            return layer.train(attention.training)
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

    def to_dense(
        self, dtype: torch.dtype | None = None
    ) -> nn.MultiheadAttention | CutMultiheadAttention:
        """A dense module with the same weights, in `dtype` or the weights' own.

        It is a torch.nn.MultiheadAttention, or a CutMultiheadAttention if heads were removed.
        """
        q, k, v, out = (as_dense_linear(self.get_submodule(name), dtype) for name in PROJECTIONS)
        if self.num_heads * self.head_dim != self.embed_dim:
            return self._cut_dense(q, k, v, out)
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

    def _cut_dense(self, *projections: nn.Linear) -> CutMultiheadAttention:
        q, k, v, _ = projections
        cut = CutMultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.head_dim,
            self.dropout,
            q.bias is not None,
            k.in_features,
            v.in_features,
            self.batch_first,
        )
        for name, projection in zip(PROJECTIONS, projections, strict=True):
            setattr(cut, name, projection)
        return cut.requires_grad_(False).train(self.training)

    @property
    def in_proj_weight(self) -> Tensor:
        """A tensor without values.

        The fast path of torch.nn.TransformerEncoder would read them; it is not taken for tensors
        of other classes than torch's own.
        """
        weight = self.q_proj.weight
        size = 3 * self.num_heads * self.head_dim, self.embed_dim
        return placeholder_weight(size, weight.dtype, weight.device)

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
        if is_causal and attn_mask is None:
            axis = 0 if query.dim() == 2 or not self.batch_first else 1
            size = (query.shape[axis], key.shape[axis])
            attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).triu(1)
        return multihead_attention(
            self,
            query,
            key,
            value,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
            dropout=0.0,
        )
