"""The Triton kernels as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.backends.activations import ACTIVATIONS
from sparse_engine.backends.cuda_table import TABLE
from sparse_engine.backends.operators import define_linear, is_plain
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format
from sparse_engine.packings.cuda.base import NO_TRITON, CudaPacking

try:
    import sparse_engine.kernels  # noqa: F401
except ImportError as error:
    raise UsageError(NO_TRITON) from error

PACKINGS: dict[str, type[Any]] = {row.packing.kind: row.packing for row in TABLE}


def linear(
    packed: Any, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """y = act(x Wᵀ + bias) + residual of a packing, by the operator where something traces."""
    return (run_linear if is_plain(x) else _linear)(packed, x, bias, activation, residual)


def run_linear(
    packed: Any, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """The op on checked arguments, without torch's dispatcher.

    Float weights meet x in their own dtype, int8 weights in that of x; sums are float32.
    """
    dtype = x.dtype if packed.dtype == torch.int8 else packed.dtype
    tokens = x.shape[:-1].numel()
    rows = x.detach().reshape(tokens, x.shape[-1]).to(dtype)
    if residual is not None:
        residual = residual.reshape(tokens, packed.outputs).to(dtype)
    if bias is not None and bias.dtype not in (dtype, torch.float32):
        bias = bias.float()
    y = _multiply(packed, rows, bias, activation, residual)
    return y.to(x.dtype).view(*x.shape[:-1], packed.outputs)


def _multiply(
    packed: CudaPacking, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    if packed.max_tokens is None or len(x) <= packed.max_tokens:
        scales = packed.scales if packed.dtype == torch.int8 else None
        return packed.launch(x, bias=bias, activation=activation, residual=residual, scales=scales)
    dense = packed.expand(x.dtype)
    y = F.linear(x, dense, None if bias is None else bias.to(x.dtype))
    y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def _load(packing: str, buffers: list[Tensor], params: list[int], shape: tuple[int, int]) -> Format:
    cls = PACKINGS[packing]
    fields = dict(zip(cls.buffer_names, buffers, strict=True))
    own = cls.__dataclass_fields__
    extra = {n: p for n, p in zip(cls.param_names, params, strict=True) if n in own}
    return cls(shape=shape, **fields, **extra)


def _width(packing: str, params: list[int], rows: int) -> int:
    """Output features: half the rows of a gated weight."""
    named = dict(zip(PACKINGS[packing].param_names, params, strict=True))
    return rows // 2 if named.get("gated") else rows


# The CPU key serves Triton's interpreter; without it Triton itself refuses CPU tensors.
_linear = define_linear("linear_gpu", ("CUDA", "CPU"), _load, run_linear, _width)
