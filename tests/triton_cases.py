"""Cases of the Triton kernels, on the interpreter or a GPU; test_kernels_triton.py runs them.

Everything around the operands is NaN and so is the output before the launch: a wrong mask shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sparse_engine.kernels import linear_bsr
from sparse_engine.kernels.linear_bsr import INTERPRETED
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.formats import BSR

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MARGIN = 64
ACTIVATIONS = {
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


def make_weight(
    out_features: int, in_features: int, rows: int, cols: int, density: float, dtype: torch.dtype
) -> Tensor:
    """Random blocks; the second block row is empty if there is one."""
    generator = torch.Generator().manual_seed(out_features * 7 + in_features)
    grid = (-(-out_features // rows), -(-in_features // cols))
    kept = torch.rand(grid, generator=generator) < density
    kept[1:2] = False
    mask = kept.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    return weight * mask[:out_features, :in_features]


def check(
    tokens: int,
    weight: Tensor,
    rows: int,
    cols: int,
    activation: str | None = None,
    bias_dtype: torch.dtype | None = None,
    residual: bool = False,
) -> None:
    """Compare one call with float64."""
    dtype = weight.dtype
    out_features, in_features = weight.shape
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, in_features, generator=generator).to(dtype)
    bias = torch.randn(out_features, generator=generator).to(bias_dtype) if bias_dtype else None
    added = torch.randn(tokens, out_features, generator=generator).to(dtype) if residual else None

    matrix = BSR.from_dense(weight.float(), rows, cols).to(DEVICE)
    y = linear_bsr(
        surrounded(x),
        matrix.values.to(dtype),
        matrix.indices,
        matrix.pointers,
        bias=None if bias is None else bias.to(DEVICE),
        activation=activation,
        residual=None if added is None else surrounded(added),
        out_features=out_features,
    )
    assert y.shape == (tokens, out_features)
    assert y.dtype == dtype

    expected = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T  # what rounding errors are relative to
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    expected = ACTIVATIONS[activation](expected)
    if added is not None:
        expected, size = expected + added.double(), size + added.double().abs()
    # One rounding to the output dtype (the interpreter truncates), float32 before it.
    allowed = torch.finfo(dtype).eps * expected.abs() + 2e-6 * size
    error = (y.double().cpu() - expected).abs()
    assert bool((error <= allowed).all()), f"{float((error / allowed).max())} times the tolerance"


SHAPES = (
    # tokens, out, in, rows, cols
    (1, 16, 16, 16, 16),  # a single block
    (3, 47, 61, 16, 16),  # primes: every side has a tail
    (16, 64, 96, 32, 32),  # no tails
    (17, 96, 50, 32, 16),  # tall blocks
    (31, 33, 130, 16, 64),  # wide blocks
    (7, 130, 129, 128, 128),  # one row and one column in the last blocks
    (129, 70, 40, 64, 16),  # a second tile of tokens with one token
    (1031, 48, 17, 16, 16),  # more tiles of tokens than one group
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    tokens, out_features, in_features, rows, cols = shape
    weight = make_weight(out_features, in_features, rows, cols, 0.7, dtype)
    check(tokens, weight, rows, cols)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str | None) -> None:
    weight = make_weight(35, 33, 16, 16, 0.7, torch.float32)
    check(5, weight, 16, 16, activation, bias_dtype=torch.float32, residual=True)


@pytest.mark.parametrize("bias_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
def test_epilogue(bias_dtype: torch.dtype | None, residual: bool) -> None:
    weight = make_weight(35, 33, 16, 16, 0.7, torch.bfloat16)
    check(5, weight, 16, 16, "silu", bias_dtype, residual)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_zero_and_all_dense(density: float) -> None:
    weight = torch.randn(40, 40, generator=torch.Generator().manual_seed(0)) * density
    check(5, weight, 16, 16, bias_dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_extreme_activations_stay_finite() -> None:
    """Large arguments of exp do not turn into NaN."""
    weight = torch.eye(16) * 200
    for activation in ("gelu", "gelu_tanh", "silu", "relu"):
        check(4, weight, 16, 16, activation)


def test_nan_and_inf_pass_through() -> None:
    matrix = BSR.from_dense(torch.eye(16), 16, 16).to(DEVICE)
    x = torch.zeros(2, 16, device=DEVICE)
    x[0, 3] = torch.nan
    for activation in ("none", "relu"):
        y = linear_bsr(x, matrix.values, matrix.indices, matrix.pointers, activation=activation)
        assert bool(y[0].isnan().all())
        assert bool((y[1] == 0).all())


def test_nothing_to_do() -> None:
    check(0, make_weight(20, 20, 16, 16, 1.0, torch.float32), 16, 16)
    check(3, torch.zeros(0, 20), 16, 16)
    check(3, torch.zeros(20, 0), 16, 16, "relu", bias_dtype=torch.float32)


def test_strided_operands_and_default_size() -> None:
    weight = make_weight(32, 40, 16, 16, 1.0, torch.float32)
    matrix = BSR.from_dense(weight, 16, 16).to(DEVICE)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).to(DEVICE).t()
    residual = torch.ones(32, 6, device=DEVICE).t()
    y = linear_bsr(x, matrix.values, matrix.indices, matrix.pointers, residual=residual)
    expected = x.double().cpu() @ weight.double().T + 1
    torch.testing.assert_close(y.double().cpu(), expected, rtol=0, atol=1e-4)


def test_refusals() -> None:
    matrix = BSR.from_dense(torch.ones(32, 32), 16, 16).to(DEVICE)
    x = torch.ones(2, 32, device=DEVICE)
    good = {
        "x": x,
        "values": matrix.values,
        "indices": matrix.indices,
        "pointers": matrix.pointers,
    }
    cases = [
        ({"values": matrix.values[:, :4]}, "blocks of 4x16: supported are rows and cols of 16, 32"),
        ({"values": matrix.values[0]}, r"values: expected \[blocks, rows, cols\]"),
        ({"values": matrix.values.transpose(1, 2)}, "values: is not contiguous"),
        ({"values": matrix.values.half()}, "values: expected torch.float32 as x has"),
        ({"indices": matrix.indices.long()}, r"indices: expected torch.int32 \[4\]"),
        ({"pointers": matrix.pointers[None]}, r"pointers: expected torch.int32 \[block rows"),
        ({"out_features": 33}, "out_features: 33 does not fit 2 rows of 16x16 blocks"),
        ({"x": x[0]}, r"x: expected \[tokens, in_features\]"),
        ({"x": x.double()}, "x: expected float32, float16 or bfloat16"),
        ({"bias": x[0, :5]}, r"bias: expected contiguous \[32\]"),
        (
            {"bias": x[0].half()},
            "bias: expected torch.float32 or torch.float32 as x has, got torch.float16",
        ),
        ({"residual": x[:1]}, r"residual: expected torch.float32 \[2, 32\]"),
        (
            {"activation": "tanh"},
            "activation: expected one of none, relu, gelu, gelu_tanh, silu, got 'tanh'",
        ),
        ({"bias": torch.ones(32, device="meta")}, "all tensors must be on one device"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=f"linear_bsr: {message}"):
            linear_bsr(**{**good, **change})


def half_empty_weight(rows: int, cols: int) -> Tensor:
    keep = torch.rand(rows // 16, cols // 16, generator=torch.Generator().manual_seed(5)) < 0.5
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(6))
    return weight * keep.repeat_interleave(16, 0).repeat_interleave(16, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_engines_op_runs_this_kernel(dtype: torch.dtype) -> None:
    from sparse_engine.ops import reference, triton

    matrix = BSR.from_dense(half_empty_weight(64, 48), 16, 16)
    matrix = BSR.from_dense(matrix.to_dense().to(dtype), 16, 16).to(DEVICE)
    x = torch.randn(2, 5, 48, device=DEVICE)
    bias, residual = torch.randn(64, device=DEVICE), torch.randn(2, 5, 64, device=DEVICE)
    y = triton.linear_bsr(matrix, x, bias, "gelu", residual)
    truth = reference.linear(matrix.to_dense(), x, bias, "gelu", residual)
    assert y.dtype == x.dtype
    error = float((y - truth).abs().max() / truth.abs().max())
    assert error <= (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_layer_that_holds_bsr_runs_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer is after .to("cuda"): BSR as it is. The interpreter lets it stay on the CPU."""
    from sparse_engine.nn import SparseLinear
    from sparse_engine.nn import linear as module

    linear = torch.nn.Linear(48, 64)
    linear.weight.data = half_empty_weight(64, 48)
    if INTERPRETED:
        monkeypatch.setattr(module, "pack", lambda weight, device_type, dtype=None: weight)
    layer = SparseLinear.from_dense(linear, "bsr:16x16").to(DEVICE)
    assert isinstance(layer.packed, BSR)
    assert layer.kernel(8) == "linear_bsr_triton"
    x = torch.randn(3, 48)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x.to(DEVICE)).cpu(), linear(x), rtol=1e-4, atol=1e-5)
