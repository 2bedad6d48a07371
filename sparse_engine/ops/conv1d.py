"""Convolution over time on the CPU: a torch operator over the native op, as `native` is for linear."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.ops.native import weight_handle

_library = torch.library.Library("sparse_engine", "FRAGMENT")
_library.define(
    "conv1d(Tensor x, Tensor[] buffers, int[] params, str packing, Tensor? bias, int out_channels, "
    "int kernel, int stride, int dilation, SymInt left, SymInt steps) -> Tensor"
)


def run(
    weight: _core.Weight,
    x: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel: int,
    stride: int,
    dilation: int,
    left: int,
    steps: int,
) -> Tensor:
    """y [batch, out, steps] of x [batch, channels, length] with a weight [out, channels x kernel].

    `left` zeros stand before x, and behind it as many as `steps` take. x is float32 or bfloat16, y as
    x; sums are float32.
    """
    source = x.detach().float()
    if source.stride(-1) != 1:
        source = source.contiguous()
    y = source.new_empty(len(x), out_channels, steps)
    numbers = None if bias is None else bias.float().numpy()
    weight.conv1d(source.numpy(), y.numpy(), kernel, stride, dilation, left, numbers)
    return y.to(x.dtype)


def _conv1d(
    x: Tensor,
    buffers: list[Tensor],
    params: list[int],
    packing: str,
    bias: Tensor | None,
    out_channels: int,
    kernel: int,
    stride: int,
    dilation: int,
    left: int,
    steps: int,
) -> Tensor:
    handle = weight_handle(packing, buffers, params, out_channels, x.shape[1] * kernel)
    return run(handle, x, bias, out_channels, kernel, stride, dilation, left, steps)


def _conv1d_fake(
    x: Tensor,
    buffers: list[Tensor],
    params: list[int],
    packing: str,
    bias: Tensor | None,
    out_channels: int,
    kernel: int,
    stride: int,
    dilation: int,
    left: int,
    steps: int,
) -> Tensor:
    return x.new_empty(x.shape[0], out_channels, steps)


_library.impl("conv1d", _conv1d, "CPU")
torch.library.register_fake("sparse_engine::conv1d", _conv1d_fake, lib=_library)
