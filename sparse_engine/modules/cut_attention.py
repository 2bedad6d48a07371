"""CutMultiheadAttention: torch.nn.MultiheadAttention from which heads were removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.attention import multihead_attention
from sparse_engine.modules.placeholder import placeholder_weight

JOINT = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class CutMultiheadAttention(nn.Module):
    """torch.nn.MultiheadAttention with any number of heads, also fewer than embed_dim / head_dim.

    The projections are linear layers, q_proj, k_proj, v_proj and out_proj. Arguments and results of
    a call are those of torch.nn.MultiheadAttention; it trains too.

    >>> CutMultiheadAttention(512, num_heads=5, head_dim=64)
    """

    # torch's own encoder layers check these before they read weights past the modules.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        """A layer with random weights.

        Args:
            embed_dim: features of queries and of the output.
            num_heads: how many heads there are.
            head_dim: features of a head.
            dropout: probability that an attention weight is dropped in training.
            bias: whether the projections have a bias.
            kdim, vdim: features of keys and values; embed_dim by default.
            batch_first: whether the batch is the first dimension, rather than the second.

        Raises:
            UsageError: if a size is less than 1.
        """
        super().__init__()
        if min(embed_dim, num_heads, head_dim) < 1:
            raise UsageError("embed_dim, num_heads and head_dim are at least 1")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.dropout, self.batch_first = dropout, batch_first
        self.bias_k, self.bias_v, self.add_zero_attn = None, None, False
        width = num_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, width, bias)
        self.k_proj = nn.Linear(self.kdim, width, bias)
        self.v_proj = nn.Linear(self.vdim, width, bias)
        self.out_proj = nn.Linear(width, embed_dim, bias)

    @property
    def in_proj_weight(self) -> Tensor:
        """A tensor without values: torch's fused encoder is not run for tensors of its class."""
        weight = self.q_proj.weight
        return placeholder_weight(
            (3 * weight.shape[0], self.embed_dim), weight.dtype, weight.device
        )

    forward = multihead_attention


def split_projections_(attention: Any) -> None:
    """Make a torch.nn.MultiheadAttention a CutMultiheadAttention of the same values, in place.

    The module stays the same object, so that hooks, and models that refer to it, are not affected.
    """
    joint, bias = attention.in_proj_weight, attention.in_proj_bias
    weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
    if joint is not None:
        weights = [_parameter(part, joint) for part in joint.chunk(3)]
    biases = [None] * 3 if bias is None else [_parameter(part, bias) for part in bias.chunk(3)]
    out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
    for name in JOINT:
        attention._parameters.pop(name, None)
    vars(attention).pop("_qkv_same_embed_dim", None)
    attention.__class__ = CutMultiheadAttention
    modules = {
        f"{name}_proj": _linear(weight, part)
        for name, weight, part in zip("qkv", weights, biases, strict=True)
    }
    attention._modules.update({**modules, "out_proj": out_proj})
    attention.train(attention.training)


def _parameter(part: Tensor, of: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(part.detach().clone(), requires_grad=of.requires_grad)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=torch.device("meta"))
    linear.weight = weight
    linear.bias = bias  # type: ignore[assignment]
    return linear
