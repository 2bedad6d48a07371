"""Cases of the N:M kernels, on the interpreter or a GPU; test_triton.py runs them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from sparse_engine.kernels import expand_nm, linear_nm
from torch import Tensor
from triton_common import ACTIVATIONS, DEVICE, DTYPES, check, outputs

from sparse_engine.packings import PackedNM

__all__ = ["outputs"]

PATTERNS = ((1, 2), (2, 4), (1, 4), (2, 8), (4, 8), (1, 16), (4, 16), (16, 16))


def grouped(out_features: int, in_features: int, keep: int, of: int) -> Tensor:
    """A random weight; some groups hold fewer than `keep`, the second row none."""
    generator = torch.Generator().manual_seed(out_features + in_features)
    scores = torch.rand(out_features, -(-in_features // of), of, generator=generator)
    kept = (scores >= scores.topk(keep, -1).values[..., -1:]) & (scores > 0.2)
    weight = torch.randn(scores.shape, generator=generator) * kept
    weight = weight.reshape(out_features, -1)[:, :in_features].contiguous()
    weight[1:2] = 0
    return weight


def check_nm(
    tokens: int, weight: Tensor, keep: int, of: int, dtype: torch.dtype, **kwargs: object
) -> None:
    """Compare one call with float64; int8 weights multiply x in float16."""
    packed = PackedNM.from_dense(weight, dtype, keep=keep, of=of).to(DEVICE)
    int8 = dtype == torch.int8
    run = partial(
        linear_nm,
        values=packed.values,
        positions=packed.positions,
        keep=keep,
        of=of,
        scales=packed.scales if int8 else None,
        gated=kwargs.get("gated", False),
    )
    truth = packed.to_dense().cpu()
    check(run, tokens, truth, torch.float16 if int8 else dtype, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 4, 5])
@pytest.mark.parametrize("shape", [(1, 16), (37, 61), (20, 1100)])
def test_shapes(shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> None:
    check_nm(tokens, grouped(*shape, 2, 4), 2, 4, dtype)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.float16):
        check_nm(2, grouped(35, 530, *pattern), *pattern, dtype)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_epilogue(activation: str | None, gated: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        bias = torch.float16 if dtype == torch.int8 else torch.float32
        weight = grouped(38, 90, 2, 4)
        check_nm(
            5, weight, 2, 4, dtype,
            activation=activation, bias_dtype=bias, residual=True, gated=gated,
        )  # fmt: skip


def test_nothing_to_do() -> None:
    check_nm(0, grouped(20, 20, 2, 4), 2, 4, torch.float32)
    check_nm(3, torch.zeros(0, 20), 2, 4, torch.float32)
    check_nm(3, torch.zeros(20, 0), 2, 4, torch.float32, bias_dtype=torch.float32)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_expand(pattern: tuple[int, int]) -> None:
    for dtype in (*DTYPES, torch.int8):
        packed = PackedNM.from_dense(
            grouped(35, 530, *pattern), dtype, keep=pattern[0], of=pattern[1]
        ).to(DEVICE)
        int8 = dtype == torch.int8
        dense = expand_nm(
            packed.values,
            packed.positions,
            *pattern,
            530,
            torch.float32 if int8 else dtype,
            packed.scales if int8 else None,
        )
        assert torch.equal(dense, packed.to_dense())


def test_refusals() -> None:
    packed = PackedNM.from_dense(grouped(4, 32, 2, 4), keep=2, of=4).to(DEVICE)
    x = torch.ones(1, 32, device=DEVICE)
    good = {"x": x, "values": packed.values, "positions": packed.positions, "keep": 2, "of": 4}
    cases = [
        ({"keep": 3}, "3:4: supported are powers of two"),
        ({"of": 32}, "2:32: supported are powers of two"),
        ({"values": packed.values[0]}, r"values: expected \[out_features, n\]"),
        ({"positions": packed.positions[:, :2]}, r"positions: expected torch.uint8 \[4, 4\]"),
        ({"x": torch.ones(1, 64, device=DEVICE)}, "x: has 64 features"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=f"linear_nm: {message}"):
            linear_nm(**{**good, **change})
