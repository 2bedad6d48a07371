"""The CPU ops: torch operators over the native library, so that compile and export accept them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Importing torch first matters: the extension then binds to torch's OpenMP, and one pool serves both.
from sparse_engine import _core
from sparse_engine.errors import UsageError

ACTIVATION_CODES = _core.ACTIVATIONS  # the native library's codes, by name

# One operator for every packing: what differs is the list of buffers and of parameters.
_library = torch.library.Library("sparse_engine", "FRAGMENT")
_library.define(
    "linear(Tensor x, Tensor[] buffers, int[] params, str packing, Tensor? bias, "
    "Tensor? residual, int out_features, str activation) -> Tensor"
)


def _array(tensor: Tensor):  # type: ignore[no-untyped-def]
    """The tensor's memory as numpy sees it; numpy has no bfloat16, so its bits go as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _rows(tensor: Tensor, features: int) -> Tensor:
    """[..., features] as [tokens, features] with contiguous rows, copying only where it must."""
    if tensor.dim() == 2 and tensor.is_contiguous():
        return tensor
    flat = tensor.reshape(-1, features)
    return flat if flat.stride(-1) == 1 and flat.stride(0) >= features else flat.contiguous()


def weight_handle(
    packing: str, buffers: Sequence[Tensor], params: Sequence[int], out: int, in_features: int
) -> _core.Weight:
    """The native view of a packing; it shares the buffers' memory."""
    arrays = [_array(buffer) for buffer in buffers]
    return _core.Weight(packing, arrays, list(params), out, in_features)


def run(
    weight: _core.Weight,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out_features: int,
    activation: str,
) -> Tensor:
    """The op on checked arguments, by the library directly: what a call of a layer comes down to."""
    x, in_features = x.detach(), x.shape[-1]
    tokens = x.numel() // in_features if in_features else x.shape[:-1].numel()
    y = x.new_empty(tokens, out_features)
    if bias is not None and bias.dtype != torch.float32:
        bias = bias.float()
    rows = x.new_empty(tokens, 0) if not in_features else _rows(x, in_features)
    weight.linear(
        _array(rows),
        _array(y),
        None if bias is None else bias.numpy(),
        None if residual is None else _array(_rows(residual, out_features)),
        ACTIVATION_CODES[activation],
    )
    return y if x.dim() == 2 else y.view(*x.shape[:-1], out_features)


def _linear(
    x: Tensor,
    buffers: list[Tensor],
    params: list[int],
    packing: str,
    bias: Tensor | None,
    residual: Tensor | None,
    out_features: int,
    activation: str,
) -> Tensor:
    handle = weight_handle(packing, buffers, params, out_features, x.shape[-1])
    return run(handle, x, bias, residual, out_features, activation)


def _linear_fake(
    x: Tensor,
    buffers: list[Tensor],
    params: list[int],
    packing: str,
    bias: Tensor | None,
    residual: Tensor | None,
    out_features: int,
    activation: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


_library.impl("linear", _linear, "CPU")
torch.library.register_fake("sparse_engine::linear", _linear_fake, lib=_library)


def check_linear(
    x: Tensor, shape: tuple[int, int], activation: str | None, residual: Tensor | None
) -> str:
    """Refuse what no kernel takes, in one line; return the activation's name."""
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError("sparse layers are inference only: call them under torch.inference_mode()")
    out_features, in_features = shape
    name = activation or "none"
    if name not in ACTIVATION_CODES:
        raise UsageError(f"activation {activation!r}: use one of {', '.join(ACTIVATION_CODES)}")
    half = x.dtype == torch.float16 and x.device.type != "cpu"
    if x.dtype not in (torch.float32, torch.bfloat16) and not half:
        raise UsageError(f"x is {x.dtype}: cast it to float32 or bfloat16")
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise UsageError(f"x is {list(x.shape)}, but the weight takes [..., {in_features}]")
    if residual is not None:
        wanted = (*x.shape[:-1], out_features)
        if tuple(residual.shape) != wanted or residual.dtype != x.dtype:
            raise UsageError(
                f"residual is {residual.dtype} {list(residual.shape)}, "
                f"expected {x.dtype} {list(wanted)}"
            )
    return name
