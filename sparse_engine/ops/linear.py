"""The linear op on a sparse weight: its checks, and the backend that computes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_engine.backends import backend_of, backend_of_packing
from sparse_engine.backends.activations import ACTIVATIONS
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format


def linear(
    weight: Format,
    x: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = act(x Wᵀ + bias) + residual. Inference only: no gradient flows through it.

    On the CPU products and sums are float32, and int8 packings may quantise x token by token. On a
    GPU x meets float weights in their dtype.

    Args:
        weight: [out, in], a format or a packing. A format is packed at every call: where speed
            matters, keep `sparse_engine.ops.pack(weight)`, or a layer.
        x: [..., in], float32 or bfloat16, on a GPU also float16.
        bias: [out].
        activation: "relu", "gelu" (exact), "gelu_tanh" or "silu"; none by default.
        residual: Added to the result; shape and dtype of y.

    Returns:
        y [..., out] in the dtype of x.

    Raises:
        UsageError: The arguments do not fit one another, or no kernel takes them.

    >>> se.ops.linear(se.CSR.from_dense(weight), x, activation="gelu")
    """
    backend = backend_of(x)
    name = check_linear(x, weight.shape, activation, residual, backend.input_dtypes)
    if x.device != weight.device:
        raise UsageError(f"x is on {x.device}, the weight on {weight.device}: move one of them")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise UsageError(f"bias is {list(bias.shape)}, expected [{weight.shape[0]}]")
    bias = None if bias is None else bias.detach().contiguous()
    residual = None if residual is None else residual.detach()
    return run_linear(backend.pack(weight), x, bias, name, residual)


def pack(weight: Format, dtype: str | None = None, tokens: Sequence[int] = ()) -> Format:
    """What the kernels of the weight's device read for it.

    Args:
        weight: A format, or a packing, which then is returned as it is where kernels read it.
        dtype: "float32", "bfloat16", "float16" (on a GPU) or "int8"; by default the weight's own.
        tokens: Numbers of rows of the activations, where they are known: the packing then suits
            them.

    Raises:
        UsageError: No kernel on the device has such values, or they cannot hold the weight.

    >>> packed = se.ops.pack(se.CSR.from_dense(weight), "int8")
    """
    return backend_of(weight.device).pack(weight, dtype, tokens)


def run_linear(
    packed: Format, x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """The op on a packed weight and checked arguments."""
    return backend_of_packing(packed).linear(packed, x, bias, activation, residual)


def linear_kernel(packed: Format, tokens: int) -> str:
    """Name of the kernel that `linear` runs, e.g. "spmm_runs_f32_avx512"."""
    return backend_of_packing(packed).kernel_name(packed, tokens)


def check_linear(
    x: Tensor,
    shape: tuple[int, int],
    activation: str | None,
    residual: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
) -> str:
    """The activation's name; raises UsageError, in one line, for arguments that no kernel takes.

    Args:
        x: The activations.
        shape: Of the weight, [out, in].
        activation: A name, or None.
        residual: What is added to the result, or None.
        dtypes: Those that x may have, `Backend.input_dtypes`.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError("sparse layers are inference only: call them under torch.inference_mode()")
    out_features, in_features = shape
    name = activation or "none"
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {activation!r}: use one of {', '.join(ACTIVATIONS)}")
    if x.dtype not in dtypes:
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
