"""The Triton kernels as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.backends.activations import ACTIVATIONS
from sparse_engine.backends.operators import define_linear, is_plain
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format
from sparse_engine.packings.cuda.base import NO_TRITON
from sparse_engine.packings.cuda.bsr import PackedBSR
from sparse_engine.packings.cuda.ell import Ell
from sparse_engine.packings.cuda.nm import PackedNM

try:
    from sparse_engine import kernels
except ImportError as error:
    raise UsageError(NO_TRITON) from error

# Up to as many tokens, single elements and N:M have kernels of their own, which read the weight
# once for four tokens. For more tokens the weight is expanded and multiplied by torch's dense
# product.
FEW_ELEMENT_TOKENS = 16
PACKINGS: dict[str, type[Format]] = {cls.kind: cls for cls in (PackedBSR, Ell, PackedNM)}


def linear(
    packed: Format, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """y = act(x Wᵀ + bias) + residual of a packing, by the operator where something traces."""
    return (run_linear if is_plain(x) else _linear)(packed, x, bias, activation, residual)


def run_linear(
    packed: Format, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """The op on checked arguments, without torch's dispatcher.

    Float weights meet x in their own dtype, int8 weights in that of x; sums are float32.
    """
    dtype = x.dtype if packed.dtype == torch.int8 else packed.dtype
    tokens = x.shape[:-1].numel()
    rows = x.detach().reshape(tokens, x.shape[-1]).to(dtype)
    out_features = packed.shape[0] // (2 if packed.params().get("gated") else 1)
    if residual is not None:
        residual = residual.reshape(tokens, out_features).to(dtype)
    if bias is not None and bias.dtype not in (dtype, torch.float32):
        bias = bias.float()
    y = _multiply(packed, rows, bias, activation, residual)
    return y.to(x.dtype).view(*x.shape[:-1], out_features)


def _multiply(
    packed: Any, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    scales = packed.scales if packed.dtype == torch.int8 else None
    rest = {"bias": bias, "activation": activation, "residual": residual, "scales": scales}
    if isinstance(packed, PackedBSR):
        cut = len(packed.items) > 0
        plan = kernels.BsrPlan(
            packed.order,
            packed.items if cut else None,
            packed.parts if cut else None,
            packed.most,
        )
        return kernels.linear_bsr(
            x,
            packed.values,
            packed.indices,
            packed.pointers,
            out_features=packed.shape[0],
            gated=bool(packed.gated),
            plan=plan,
            **rest,
        )
    if len(x) <= FEW_ELEMENT_TOKENS and isinstance(packed, Ell):
        buffers = (packed.values, packed.columns, packed.groups, packed.rows)
        return kernels.linear_ell(x, *buffers, packed.shape[0], **rest)
    if len(x) <= FEW_ELEMENT_TOKENS:
        pattern = (packed.values, packed.positions, packed.keep, packed.of)
        return kernels.linear_nm(x, *pattern, **rest)
    dense = expand(packed, x.dtype)
    y = F.linear(x, dense, None if bias is None else bias.to(x.dtype))
    y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def expand(packed: Any, dtype: torch.dtype) -> Tensor:
    """The dense weight [out, in] of an Ell or a PackedNM, as large as the model's was."""
    scales = packed.scales if packed.dtype == torch.int8 else None
    if isinstance(packed, Ell):
        buffers = (packed.values, packed.columns, packed.groups, packed.rows)
        return kernels.expand_ell(*buffers, packed.shape, dtype, scales)
    pattern = (packed.values, packed.positions, packed.keep, packed.of)
    return kernels.expand_nm(*pattern, packed.shape[1], dtype, scales)


def kernel_name(packed: Format, tokens: int) -> str:
    """Name of the kernel that runs `tokens` tokens, whose rows are contiguous."""
    if isinstance(packed, PackedBSR):
        cut = len(packed.items) > 0
        return kernels.linear_bsr_name(packed.values, tokens, packed.shape[1], cut)
    name = {Ell: "ell", PackedNM: "nm"}[type(packed)]
    few = tokens <= FEW_ELEMENT_TOKENS
    return f"linear_{name}_kernel" if few else f"expand_{name}_kernel, dense"


def _load(packing: str, buffers: list[Tensor], params: list[int], shape: tuple[int, int]) -> Format:
    cls = PACKINGS[packing]
    fields = dict(zip(cls.buffer_names, buffers, strict=True))
    own = cls.__dataclass_fields__
    extra = {n: p for n, p in zip(cls.param_names, params, strict=True) if n in own}
    return cls(shape=shape, **fields, **extra)  # type: ignore[arg-type]


def _width(packing: str, params: list[int], rows: int) -> int:
    """Output features: half the rows of a gated weight."""
    named = dict(zip(PACKINGS[packing].param_names, params, strict=True))
    return rows // 2 if named.get("gated") else rows


# The CPU key serves Triton's interpreter; without it Triton itself refuses CPU tensors.
_linear = define_linear("linear_gpu", ("CUDA", "CPU"), _load, run_linear, _width)
