"""The native library's ops as torch operators: linear and convolution over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Importing torch first matters: the extension then binds to torch's OpenMP, and one pool serves
# both.
from sparse_engine import _core
from sparse_engine.backends.base import Window
from sparse_engine.backends.operators import define_linear, is_plain, library
from sparse_engine.formats import Format


def weight_handle(packed: Format) -> _core.Weight:
    """The native view of a packing; it is kept with the packing until a buffer's memory moves."""
    buffers = list(packed.tensors().values())
    addresses = tuple(buffer.data_ptr() for buffer in buffers)
    known = packed.__dict__.get("_handle")
    if known is None or known[0] != addresses:
        kind: str = packed.kind  # type: ignore[attr-defined]
        handle = native_weight(kind, buffers, list(packed.params().values()), packed.shape)
        known = packed.__dict__["_handle"] = (addresses, handle)
    return known[1]


def native_weight(
    packing: str, buffers: Sequence[Tensor], params: Sequence[int], shape: tuple[int, int]
) -> _core.Weight:
    """The native view of a packing's buffers, whose memory it shares."""
    return _core.Weight(packing, [as_array(buffer) for buffer in buffers], list(params), *shape)


def as_array(tensor: Tensor) -> Any:
    """The tensor's memory as a numpy array; numpy has no bfloat16, so its bits go as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def run_linear(
    weight: _core.Weight,
    out_features: int,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """y [..., out] = act(x Wᵀ + bias) + residual of checked arguments, past torch's dispatcher."""
    x, in_features = x.detach(), x.shape[-1]
    tokens = x.numel() // in_features if in_features else x.shape[:-1].numel()
    y = x.new_empty(tokens, out_features)
    if bias is not None and bias.dtype != torch.float32:
        bias = bias.float()
    rows = x.new_empty(tokens, 0) if not in_features else _rows(x, in_features)
    weight.linear(
        as_array(rows),
        as_array(y),
        None if bias is None else bias.numpy(),
        None if residual is None else as_array(_rows(residual, out_features)),
        _core.ACTIVATIONS[activation],
    )
    return y if x.dim() == 2 else y.view(*x.shape[:-1], out_features)


def _rows(tensor: Tensor, features: int) -> Tensor:
    """[..., features] as [tokens, features] with contiguous rows; copied only where it must be."""
    if tensor.dim() == 2 and tensor.is_contiguous():
        return tensor
    flat = tensor.reshape(-1, features)
    return flat if flat.stride(-1) == 1 and flat.stride(0) >= features else flat.contiguous()


def linear(
    packed: Format, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """y = act(x Wᵀ + bias) + residual of a packing, by the operator where something traces."""
    if not is_plain(x):
        return _linear(packed, x, bias, activation, residual)
    return run_linear(weight_handle(packed), packed.shape[0], x, bias, activation, residual)


# A loaded weight is the native one and its output features.
_linear = define_linear(
    "linear",
    ("CPU",),
    load=lambda packing, buffers, params, shape: (
        native_weight(packing, buffers, params, shape),
        shape[0],
    ),
    run=lambda loaded, *call: run_linear(*loaded, *call),
)


def run_conv1d(
    weight: _core.Weight, out_channels: int, x: Tensor, bias: Tensor | None, window: Window
) -> Tensor:
    """y [batch, out, steps] of x [batch, channels, length] with a weight [out, channels x kernel].

    x is float32 or bfloat16, and y has its dtype; sums are float32.
    """
    source = x.detach().float()
    if source.stride(-1) != 1:
        source = source.contiguous()
    y = source.new_empty(len(x), out_channels, window.steps)
    numbers = None if bias is None else bias.float().numpy()
    weight.conv1d(source.numpy(), y.numpy(), *window[:-1], numbers)
    return y.to(x.dtype)


def conv1d(packed: Format, x: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution of a packing of panels, by the operator where something traces."""
    if is_plain(x):
        return run_conv1d(weight_handle(packed), packed.shape[0], x, bias, window)
    buffers, params = list(packed.tensors().values()), list(packed.params().values())
    kind: str = packed.kind  # type: ignore[attr-defined]
    return torch.ops.sparse_engine.conv1d(x, buffers, params, kind, bias, packed.shape[0], *window)


def _conv1d(
    x: Tensor,
    buffers: list[Tensor],
    params: list[int],
    packing: str,
    bias: Tensor | None,
    out_channels: int,
    *window: int,
) -> Tensor:
    shape = out_channels, x.shape[1] * window[0]
    weight = native_weight(packing, buffers, params, shape)
    return run_conv1d(weight, out_channels, x, bias, Window(*window))


library.define(
    "conv1d(Tensor x, Tensor[] buffers, int[] params, str packing, Tensor? bias, int out_channels, "
    "int kernel, int stride, int dilation, SymInt left, SymInt steps) -> Tensor"
)
library.impl("conv1d", _conv1d, "CPU")
torch.library.register_fake(
    "sparse_engine::conv1d",
    # (x, buffers, params, packing, bias, out_channels, *window)
    lambda x, *rest: x.new_empty(x.shape[0], rest[4], rest[-1]),
    lib=library,
)
