"""Cases of the BSR kernels, on the interpreter or a GPU; test_triton.py runs them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from sparse_engine.kernels import linear_bsr, linear_bsr_name, plan_bsr
from torch import Tensor
from triton_common import ACTIVATIONS, DEVICE, DTYPES, outputs
from triton_common import check as check_call

from sparse_engine.formats import BSR

__all__ = ["outputs"]


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
    gated: bool = False,
    programs: int | None = None,
    scales: Tensor | None = None,
) -> None:
    """Compare one call with float64; programs: of the plan; scales: values are int8."""
    matrix = BSR.from_dense(weight.float(), rows, cols).to(DEVICE)
    dtype = torch.bfloat16 if scales is not None else weight.dtype
    values = matrix.values.to(torch.int8 if scales is not None else dtype)
    size = values[:1].nbytes if programs is None else 1 << 16
    run = partial(
        linear_bsr,
        values=values,
        indices=matrix.indices,
        pointers=matrix.pointers,
        out_features=len(weight),
        gated=gated,
        scales=None if scales is None else scales.to(DEVICE),
        plan=plan_bsr(matrix.pointers, max(size, 1), gated, programs),
    )
    truth = weight if scales is None else weight.float() * scales[:, None]
    check_call(run, tokens, truth, dtype, activation, bias_dtype, residual, gated)


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
    (5, 70, 41, 64, 1),  # tall vectors, few tokens
    (67, 130, 41, 128, 1),  # tall vectors, x is transposed
    (3, 40, 37, 16, 8),  # a step takes sixteen blocks
)
# What the tensor memory accelerator takes: rows of x that are multiples of 16 bytes.
TMA_SHAPES = (
    (128, 64, 64, 64, 64),
    (130, 200, 192, 64, 64),
    (150, 300, 264, 128, 128),
    (140, 256, 136, 128, 64),
    (129, 40, 72, 32, 64),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    tokens, out_features, in_features, rows, cols = shape
    weight = make_weight(out_features, in_features, rows, cols, 0.7, dtype)
    check(tokens, weight, rows, cols)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", TMA_SHAPES)
def test_tiles_by_tma(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    tokens, out_features, in_features, rows, cols = shape
    weight = make_weight(out_features, in_features, rows, cols, 0.7, dtype)
    values = BSR.from_dense(weight.float(), rows, cols).values.to(dtype).to(DEVICE)
    if linear_bsr_name(values, tokens, in_features, cut=False) != "linear_bsr_tma_kernel":
        pytest.skip("the GPU has no tensor memory accelerator")
    check(tokens, weight, rows, cols, "silu", torch.float32, residual=True)
    if out_features % (2 * rows) == 0:
        check(tokens, weight, rows, cols, "silu", torch.float32, residual=True, gated=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("programs", [3, 7, 1000])
@pytest.mark.parametrize("tokens", [1, 18])
def test_rows_shared_out(tokens: int, programs: int, dtype: torch.dtype) -> None:
    """Rows of blocks cut into parts, among them an empty one and a heavy one."""
    weight = make_weight(75, 400, 16, 16, 0.4, dtype)
    weight[32:48] = torch.randn(16, 400, generator=torch.Generator().manual_seed(1)).to(dtype)
    check(tokens, weight, 16, 16, "gelu", torch.float32, residual=True, programs=programs)


def test_plans_hold_every_block_once() -> None:
    for counts in ([0, 9, 1, 0, 30, 2], [5] * 8, [0, 0], [100]):
        pointers = torch.tensor([0, *counts]).cumsum(0).int()
        for programs in (1, 4, 50):
            plan = plan_bsr(pointers, 1 << 16, programs=programs)
            assert sorted(plan.order.tolist()) == list(range(len(counts)))
            if plan.items is None:
                share = max(1, -(-sum(counts) // programs))
                assert max(counts) <= 2 * share
                continue
            assert plan.parts is not None
            held = sorted((row, begin, end, part) for row, begin, end, part in plan.items.tolist())
            at = 0
            for row, begin, end, part in held:
                at = int(pointers[row]) if part == 0 else at
                assert begin == at
                at = end
            assert plan.parts.tolist() == [
                sum(row == r for row, *_ in held) for r in range(len(counts))
            ]
            assert plan.most == int(plan.parts.max())
            sizes = [end - begin for _, begin, end, _ in plan.items.tolist()]
            assert sum(sizes) == sum(counts)
            assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("tokens", [1, 33, 130])
@pytest.mark.parametrize("programs", [None, 9])
def test_gated(tokens: int, programs: int | None) -> None:
    """SwiGLU: the second half of the rows multiplies the activation of the first."""
    for dtype, rows in ((torch.float32, 16), (torch.bfloat16, 32)):
        weight = make_weight(4 * rows, 90, rows, 16, 0.7, dtype)
        check(tokens, weight, rows, 16, "silu", torch.float32, True, gated=True, programs=programs)


@pytest.mark.parametrize("tokens", [1, 20, 130])
@pytest.mark.parametrize("programs", [None, 9])
def test_int8(tokens: int, programs: int | None) -> None:
    weight = (make_weight(70, 130, 32, 64, 0.7, torch.float32) * 40).round().clamp(-127, 127)
    scales = torch.rand(70, generator=torch.Generator().manual_seed(2)) / 127
    check(tokens, weight, 32, 64, "relu", torch.float32, True, programs=programs, scales=scales)


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


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_and_inf_pass_through() -> None:
    matrix = BSR.from_dense(torch.eye(16), 16, 16).to(DEVICE)
    x = torch.zeros(2, 16, device=DEVICE)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    for activation in ("none", "relu"):
        y = linear_bsr(x, matrix.values, matrix.indices, matrix.pointers, activation=activation)
        assert bool(y[0].isnan().all())
        assert y[1, 5] == torch.inf


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
        (
            {"values": matrix.values[:, :4]},
            "blocks of 4x16: supported are rows of 16, 32, 64, 128 and",
        ),
        ({"values": matrix.values[0]}, r"values: expected \[blocks, rows, cols\]"),
        ({"values": matrix.values.transpose(1, 2)}, "values: is not contiguous"),
        ({"values": matrix.values.half()}, "values: expected torch.float32 as x has"),
        ({"indices": matrix.indices.long()}, r"indices: expected torch.int32 \[4\]"),
        ({"pointers": matrix.pointers[None]}, r"pointers: expected torch.int32 \[block rows"),
        ({"gated": True, "out_features": 31}, "out_features: 31 are not two halves"),
        ({"gated": True, "out_features": 30}, "out_features: 30 are not two halves"),
        ({"scales": x[0, :3]}, r"scales: expected torch.float32 \[32\]"),
        ({"values": matrix.values.char()}, "scales: expected torch.float32 .* beside int8"),
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
