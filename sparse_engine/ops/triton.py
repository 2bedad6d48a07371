"""The CUDA op: Triton kernels as a torch operator. Imported by the first call that needs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.formats import Format
from sparse_engine.ops.reference import ACTIVATIONS
from sparse_engine.packings import GPU_PACKINGS, Blocks, Ell, PackedNM
from sparse_engine.packings.cuda.values import NO_TRITON

try:
    from sparse_engine import kernels
except ImportError as error:
    raise UsageError(NO_TRITON) from error

# Up to as many tokens single elements and N:M have kernels of their own, which read the weight once for
# four; for more it is expanded, and multiplied by the dense product of torch.
FEW_ELEMENT_TOKENS = 16

_library = torch.library.Library("sparse_engine", "FRAGMENT")
_library.define(
    "linear_gpu(Tensor x, Tensor[] buffers, int[] params, str packing, Tensor? bias, "
    "Tensor? residual, int out_features, str activation) -> Tensor"
)


def run(
    packed: Format, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """The op on checked arguments, by the kernels directly.

    Float weights meet x in their own dtype, int8 ones in that of x; sums are float32.
    """
    dtype = x.dtype if packed.dtype == torch.int8 else packed.dtype
    tokens = x.shape[:-1].numel()
    rows = x.detach().reshape(tokens, x.shape[-1]).to(dtype)
    out_features = packed.shape[0] // (2 if _gated(packed) else 1)
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
    if isinstance(packed, Blocks):
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
    """The dense weight [out, in] of an Ell or a PackedNM: as much memory as the model had before."""
    scales = packed.scales if packed.dtype == torch.int8 else None
    if isinstance(packed, Ell):
        buffers = (packed.values, packed.columns, packed.groups, packed.rows)
        return kernels.expand_ell(*buffers, packed.shape, dtype, scales)
    pattern = (packed.values, packed.positions, packed.keep, packed.of)
    return kernels.expand_nm(*pattern, packed.shape[1], dtype, scales)


def _gated(packed: Format) -> bool:
    return isinstance(packed, Blocks) and bool(packed.gated)


def kernel_name(packed: Format, tokens: int) -> str:
    """Name of the kernel that runs `tokens` tokens, their rows being contiguous."""
    if isinstance(packed, Blocks):
        cut = len(packed.items) > 0
        return kernels.linear_bsr_name(packed.values, tokens, packed.shape[1], cut)
    name = {Ell: "ell", PackedNM: "nm"}[type(packed)]
    return (
        f"linear_{name}_kernel" if tokens <= FEW_ELEMENT_TOKENS else f"expand_{name}_kernel, dense"
    )


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
    cls = next(cls for cls in GPU_PACKINGS if cls.kind == packing)
    fields = dict(zip(cls.buffer_names, buffers, strict=True))
    own = cls.__dataclass_fields__
    extra = {n: p for n, p in zip(cls.param_names, params, strict=True) if n in own}
    packed = cls(shape=(out_features, x.shape[-1]), **fields, **extra)  # type: ignore[arg-type]
    return run(packed, x, bias, activation, residual)


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
    gated = packing == Blocks.kind and params[Blocks.param_names.index("gated")]
    return x.new_empty(*x.shape[:-1], out_features // (2 if gated else 1))


# The CPU key serves Triton's interpreter; without it Triton itself refuses CPU tensors.
for _key in ("CUDA", "CPU"):
    _library.impl("linear_gpu", _linear, _key)
torch.library.register_fake("sparse_engine::linear_gpu", _linear_fake, lib=_library)


def linear(
    packed: Format, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """y = act(x Wᵀ + bias) + residual through torch's dispatcher, for whoever traces or compiles."""
    return torch.ops.sparse_engine.linear_gpu(
        x,
        list(packed.tensors().values()),
        list(packed.params().values()),
        packed.kind,  # type: ignore[attr-defined]
        bias,
        residual,
        packed.shape[0],
        activation,
    )
