"""The truth: each op in a few lines of torch, on the dense weight. Slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.backends.activations import ACTIVATIONS


def linear(
    weight: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """act(x Wᵀ + bias) + residual, computed in `dtype`; weight [out, in], x [..., in]."""
    y = x.to(dtype) @ weight.to(dtype).T  # [..., out]
    if bias is not None:
        y = y + bias.to(dtype)
    y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual.to(dtype)


def recurrent_step(
    mode: str, inputs: Tensor, hidden: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """One step of torch.nn's networks: the new (h,) or, of an LSTM, (h, c).

    mode: "LSTM", "GRU", "RNN_TANH", "RNN_RELU". inputs: W_ih x + b_ih, hidden: W_hh h + b_hh, both
    [batch, gates x units]; state: what there was before, [batch, units] each. h of an LSTM is the
    one before any projection.
    """
    if mode == "LSTM":
        i, f, g, o = (inputs + hidden).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        (r, z, n), (hr, hz, hn) = inputs.chunk(3, -1), hidden.chunk(3, -1)
        n = (n + (r + hr).sigmoid() * hn).tanh()
        return (n + (z + hz).sigmoid() * (state[0] - n),)
    total = inputs + hidden
    return (total.tanh() if mode == "RNN_TANH" else total.relu(),)
