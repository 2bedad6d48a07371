"""Shared by the cases of the Triton kernels: the device, operands surrounded by NaN, the reference.

The memory around operands is NaN, and so are outputs and partial sums before the launch, so that a
wrong mask is detected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from sparse_engine.kernels.launch import INTERPRETED
from torch import Tensor
from torch.nn import functional as F

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MARGIN = 64
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda v: v,
    "none": lambda v: v,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "silu": F.silu,
}


@pytest.fixture(autouse=True)
def outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hand out outputs of NaN in a margin of NaN, and see afterwards that the margin is whole."""
    empty, buffers = torch.empty, []

    def poisoned(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        count = size[0] * size[1]
        buffer = torch.full((count + 2 * MARGIN,), torch.nan, dtype=dtype, device=device)
        buffers.append(buffer)
        return buffer[MARGIN : MARGIN + count].view(size)

    def replacement(*args: object, **kwargs: object) -> Tensor:
        ours = len(args) == 2 and set(kwargs) == {"dtype", "device"}
        return poisoned(*args, **kwargs) if ours else empty(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "empty", replacement)
    yield
    monkeypatch.undo()
    for buffer in buffers:
        assert bool(buffer[:MARGIN].isnan().all())
        assert bool(buffer[-MARGIN:].isnan().all())


def surrounded(matrix: Tensor) -> Tensor:
    """The same matrix as a view into NaN: rows before and after, columns to the right."""
    rows, cols = matrix.shape
    buffer = torch.full((rows + 2, cols + 8 - cols % 8), torch.nan, dtype=matrix.dtype)
    view = buffer.to(DEVICE)[1 : rows + 1, :cols]
    return view.copy_(matrix)


def elements(out_features: int, in_features: int, density: float, dtype: torch.dtype) -> Tensor:
    """A random weight of single elements; its second row is empty, and its third is full."""
    generator = torch.Generator().manual_seed(out_features * 7 + in_features)
    kept = torch.rand(out_features, in_features, generator=generator) < density
    kept[1:2], kept[2:3] = False, density > 0
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    return torch.where(kept, weight, 0.0)


def check(
    run: Callable[..., Tensor],
    tokens: int,
    weight: Tensor,
    dtype: torch.dtype,
    activation: str | None = None,
    bias_dtype: torch.dtype | None = None,
    residual: bool = False,
    gated: bool = False,
) -> None:
    """Compare run(x, bias=, activation=, residual=) with float64 on the weight [out, in]."""
    rows, in_features = weight.shape
    out_features = rows // 2 if gated else rows
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, in_features, generator=generator).to(dtype)
    bias = torch.randn(rows, generator=generator).to(bias_dtype) if bias_dtype else None
    added = torch.randn(tokens, out_features, generator=generator).to(dtype) if residual else None
    y = run(
        surrounded(x),
        bias=None if bias is None else bias.to(DEVICE),
        activation=activation,
        residual=None if added is None else surrounded(added),
    )
    assert y.shape == (tokens, out_features)
    assert y.dtype == dtype

    expected = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T  # what rounding errors are relative to
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    if gated:
        (left, right), (a, b) = expected.chunk(2, 1), size.chunk(2, 1)
        expected = ACTIVATIONS[activation](left) * right
        size = a * right.abs() + b * left.abs() + a * b * 1e-6
    else:
        expected = ACTIVATIONS[activation](expected)
    if added is not None:
        expected, size = expected + added.double(), size + added.double().abs()
    # One rounding to the output dtype (the interpreter truncates), float32 before it.
    allowed = torch.finfo(dtype).eps * expected.abs() + 2e-6 * size + torch.finfo(dtype).tiny
    error = (y.double().cpu() - expected).abs()
    assert bool((error <= allowed).all()), f"{float((error / allowed).max())} times the tolerance"
