"""Shared by the launchers: properties of the device, and checks of the operands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from .epilogue import ACTIVATIONS, finish_partials_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Under TRITON_INTERPRET=1 the decorator returns another class, which runs on CPU tensors.
INTERPRETED = not isinstance(finish_partials_kernel, triton.JITFunction)

# Lets Triton fuse multiplications and additions.
FUSED = {"enable_fp_fusion": True}

# The first compute capability with bfloat16 and asynchronous copies.
OLDEST = (8, 0)
# Of an H100 or H200: plans are made for it where there is no GPU.
PROCESSORS = 132
SHARED_BYTES = 232_448  # of one program


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; triton.cdiv, which kernels also call, costs five microseconds."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; of an H200 for any other device."""
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have on a GPU; on an H200 for any other device."""
    if device.type != "cuda":
        return SHARED_BYTES
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


@dataclass(frozen=True)
class Epilogue:
    """The checked operands of the epilogue, see `epilogue.finish`."""

    tokens: int
    out_features: int
    """Of y: half the rows of a gated weight."""
    activation: str
    gated: bool
    scales: Tensor | None
    bias: Tensor | None
    residual: Tensor | None

    def output(self, x: Tensor) -> Tensor:
        """An uninitialised y [tokens, out_features]."""
        return torch.empty(self.tokens, self.out_features, dtype=x.dtype, device=x.device)

    def tensors(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """scales, bias, residual and y; y replaces absent ones, which kernels do not read."""
        given = (self.scales, self.bias, self.residual)
        scales, bias, residual = (y if tensor is None else tensor for tensor in given)
        return scales, bias, residual, y

    @property
    def residual_stride(self) -> int:
        """Elements from one row of the residual to the next."""
        return 0 if self.residual is None else self.residual.stride(0)

    @property
    def flags(self) -> dict[str, object]:
        """The compile-time constants of a kernel."""
        return {
            "ACTIVATION": self.activation,
            "GATED": self.gated,
            "HAS_SCALES": self.scales is not None,
            "HAS_BIAS": self.bias is not None,
            "HAS_RESIDUAL": self.residual is not None,
        }


def check(
    name: str,
    x: Tensor,
    values: Tensor,
    out_features: int,
    buffers: Mapping[str, Tensor],
    activation: str | None = None,
    gated: bool = False,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    problem: str | None = None,
) -> Epilogue:
    """The epilogue of a call.

    Args:
        name: The launcher, for the message.
        x: [tokens, in_features].
        values: Of the weight.
        out_features: Rows of the weight.
        buffers: The weight's other buffers by name, on the device of x.
        activation, gated, scales, bias, residual: As in `linear_bsr`.
        problem: What else is wrong, if anything.

    Raises:
        ValueError: An operand does not fit; the message is one line.
    """
    activation = activation or "none"
    rows = out_features // 2 if gated else out_features
    problem = (
        problem
        or _dense_problem(x, values, scales, bias, residual, out_features, rows)
        or place_problem(x, (values, *buffers.values(), scales, bias, residual))
    )
    if activation not in ACTIVATIONS:
        problem = f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}"
    for label, buffer in {"values": values, **buffers}.items():
        if not buffer.is_contiguous():
            problem = problem or f"{label}: is not contiguous (strides {buffer.stride()})"
    if gated and out_features % 2:
        problem = problem or f"gated: needs an even number of rows, got {out_features}"
    if problem:
        raise ValueError(f"{name}: {problem}")
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    return Epilogue(x.shape[0], rows, activation, gated, scales, bias, residual)


def _dense_problem(
    x: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out_features: int,
    rows: int,
) -> str | None:
    """What is wrong with the dense operands, in one line, or None."""
    if x.dim() != 2:
        return f"x: expected [tokens, in_features], got {list(x.shape)}"
    if x.dtype not in DTYPES:
        return f"x: expected float32, float16 or bfloat16, got {x.dtype}"
    if values.dtype == torch.int8:
        if scales is None:
            return "scales: expected torch.float32 [out_features] beside int8 values, got none"
    elif values.dtype != x.dtype:
        return f"values: expected {x.dtype} as x has, or torch.int8, got {values.dtype}"
    if scales is not None and (scales.shape != (out_features,) or scales.dtype != torch.float32):
        found = f"{scales.dtype} {list(scales.shape)}"
        return f"scales: expected torch.float32 [{out_features}], got {found}"
    if bias is not None:
        if bias.shape != (out_features,) or not bias.is_contiguous():
            return f"bias: expected contiguous [{out_features}], got {list(bias.shape)}"
        if bias.dtype not in (x.dtype, torch.float32):
            return f"bias: expected torch.float32 or {x.dtype} as x has, got {bias.dtype}"
    if residual is not None:
        wanted = (x.shape[0], rows)
        if residual.shape != wanted or residual.dtype != x.dtype:
            found = f"{residual.dtype} {list(residual.shape)}"
            return f"residual: expected {x.dtype} {list(wanted)}, got {found}"
    return None


def place_problem(x: Tensor, others: tuple[Tensor | None, ...]) -> str | None:
    """What is wrong with the devices of the tensors, in one line, or None."""
    devices = {x.device} | {other.device for other in others if other is not None}
    if len(devices) > 1:
        return f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}"
    return device_problem(x.device)


@cache
def device_problem(device: torch.device) -> str | None:
    """Why kernels do not run on a device, in one line, or None."""
    if device.type != "cuda":
        if INTERPRETED:
            return None
        return f"x is on {device}; Triton needs a GPU (or TRITON_INTERPRET=1 before the import)"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        name = torch.cuda.get_device_name(device)
        return f"{name} is too old: the kernels need compute capability 8.0 (Ampere) or later"
    return None


def finish_partials(
    partials: Tensor, parts: Tensor | int, rows: int, epilogue: Epilogue, y: Tensor
) -> None:
    """Write y from partial sums.

    Args:
        partials: float32 [parts, tokens, rows of the weight].
        parts: The number of partial sums of each `rows` rows, int32, or of all rows.
        rows: Rows of the weight that share a number of parts.
        epilogue: What follows the sum.
        y: [tokens, out_features].
    """
    tile = min(16, power_of_2(epilogue.tokens))
    grid = (cdiv(epilogue.out_features, rows), cdiv(epilogue.tokens, tile))
    with torch.cuda.device_of(y):
        finish_partials_kernel[grid](
            partials,
            parts,
            *epilogue.tensors(y),
            epilogue.tokens,
            epilogue.out_features,
            epilogue.residual_stride,
            TILE=tile,
            COLS=rows,
            UNIFORM=isinstance(parts, int),
            **epilogue.flags,
            num_warps=4,
            **FUSED,
        )
