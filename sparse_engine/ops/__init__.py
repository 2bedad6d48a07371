"""What can be computed with a sparse weight. `reference` is the truth that every kernel meets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sparse_engine.errors import UsageError
from sparse_engine.formats import Format
from sparse_engine.ops import conv1d, native, reference
from sparse_engine.packings import GPU_PACKINGS, PACKINGS, pack


def linear(
    weight: Format,
    x: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = act(x Wᵀ + bias) + residual. Inference only: no gradient flows through it.

    weight: [out, in], a format or a packing; a format is packed at every call, so keep
    `sparse_engine.packings.pack(weight)`, or a layer, where speed matters. x: [..., in], float32 or
    bfloat16, on a GPU also float16; bias: [out]; activation: relu, gelu (exact), gelu_tanh or silu;
    residual: like y. Returns y [..., out] in the dtype of x. On the CPU products and sums are float32, and
    int8 packings may quantise x token by token; on a GPU x meets float weights in their dtype. Raises
    UsageError.

    >>> se.ops.linear(se.CSR.from_dense(weight), x, activation="gelu")
    """
    name = native.check_linear(x, weight.shape, activation, residual)
    if x.device != weight.device:
        raise UsageError(f"x is on {x.device}, the weight on {weight.device}: move one of them")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise UsageError(f"bias is {list(bias.shape)}, expected [{weight.shape[0]}]")
    bias = None if bias is None else bias.detach().contiguous()
    residual = None if residual is None else residual.detach()
    return run_linear(pack(weight, x.device.type), x, bias, name, residual)


def run_linear(
    packed: Format, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """The op on a weight that is packed and arguments that are checked."""
    if isinstance(packed, PACKINGS) and x.device.type in ("cpu", "meta"):
        if is_plain(x):
            handle = weight_handle(packed)
            return native.run(handle, x, bias, residual, packed.shape[0], activation)
        return torch.ops.sparse_engine.linear(
            x,
            list(packed.tensors().values()),
            list(packed.params().values()),
            packed.kind,
            bias,
            residual,
            packed.shape[0],
            activation,
        )
    if isinstance(packed, GPU_PACKINGS):
        from sparse_engine.ops import triton

        call = triton.run if is_plain(x) else triton.linear
        return call(packed, x, bias, activation, residual)
    raise UsageError(f"{packed.spec} is packed for no kernel on {x.device.type}")


def run_conv1d(
    packed: Format,
    x: Tensor,
    bias: Tensor | None,
    kernel: int,
    stride: int,
    dilation: int,
    left: int,
    steps: int,
) -> Tensor:
    """Convolution over time on checked arguments, of a packing in PANEL_PACKINGS: `conv1d.run`."""
    out = packed.shape[0]
    if is_plain(x):
        handle = weight_handle(packed)
        return conv1d.run(handle, x, bias, out, kernel, stride, dilation, left, steps)
    return torch.ops.sparse_engine.conv1d(
        x,
        list(packed.tensors().values()),
        list(packed.params().values()),
        packed.kind,  # type: ignore[attr-defined]
        bias,
        out,
        kernel,
        stride,
        dilation,
        left,
        steps,
    )


def is_plain(x: Tensor) -> bool:
    """Whether nothing watches: then the op may skip torch's dispatcher, half the cost of a call."""
    return (
        type(x) is Tensor
        and x.device.type in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
    )


def weight_handle(packed: Format) -> native._core.Weight:
    """The native view of a packing, kept with it for as long as its buffers lie where they lay."""
    buffers = list(packed.tensors().values())
    places = tuple(buffer.data_ptr() for buffer in buffers)
    known = packed.__dict__.get("_handle")
    if known is None or known[0] != places:
        params = list(packed.params().values())
        handle = native.weight_handle(packed.kind, buffers, params, *packed.shape)  # type: ignore[attr-defined]
        known = packed.__dict__["_handle"] = (places, handle)
    return known[1]


def linear_kernel(packed: Format, tokens: int) -> str:
    """Name of the kernel that `linear` runs, e.g. "spmm_runs_f32_avx512"."""
    if isinstance(packed, PACKINGS):
        dtype = str(packed.values.dtype).removeprefix("torch.")
        return native._core.linear_kernel(packed.kind, dtype, tokens)
    if isinstance(packed, GPU_PACKINGS):
        from sparse_engine.ops import triton

        return triton.kernel_name(packed, tokens)
    return "none"


__all__ = ["linear", "linear_kernel", "reference", "weight_handle"]
