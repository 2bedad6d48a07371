"""Cases of the ELLPACK kernels, on the interpreter or a GPU; test_triton.py runs them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from sparse_engine.kernels import expand_ell, linear_ell
from torch import Tensor
from triton_common import ACTIVATIONS, DEVICE, DTYPES, check, elements, outputs

from sparse_engine.packings import Ell

__all__ = ["outputs"]


def check_ell(tokens: int, weight: Tensor, dtype: torch.dtype, **kwargs: object) -> None:
    """Compare one call with float64; int8 weights multiply x in bfloat16."""
    packed = Ell.from_dense(weight.float(), dtype).to(DEVICE)
    int8 = dtype == torch.int8
    run = partial(
        linear_ell,
        values=packed.values,
        columns=packed.columns,
        groups=packed.groups,
        rows=packed.rows,
        out_features=len(weight),
        scales=packed.scales if int8 else None,
        gated=kwargs.get("gated", False),
    )
    truth = packed.to_dense().cpu()
    check(run, tokens, truth, torch.bfloat16 if int8 else dtype, **kwargs)  # type: ignore[arg-type]


SHAPES = ((1, 1), (130, 255), (127, 256), (300, 1021), (0, 9), (9, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> None:
    check_ell(tokens, elements(*shape, 0.3, dtype), dtype)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_densities(density: float) -> None:
    check_ell(2, elements(140, 300, density, torch.bfloat16), torch.bfloat16)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_epilogue(activation: str | None, gated: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        weight = elements(134, 70, 0.3, torch.float32)
        bias = torch.bfloat16 if dtype == torch.int8 else torch.float32
        check_ell(
            5, weight, dtype, activation=activation, bias_dtype=bias, residual=True, gated=gated
        )


def test_no_tokens() -> None:
    check_ell(0, elements(20, 20, 0.5, torch.float32), torch.float32)


def test_nan_of_columns_without_values_stays_away() -> None:
    """An empty slot multiplies nothing: not even a NaN or an Inf of x."""
    weight = torch.zeros(130, 300)
    weight[0, 5:15], weight[1, 7] = 1.0, 2.0
    for dtype in DTYPES:
        packed = Ell.from_dense(weight, dtype).to(DEVICE)
        x = torch.full((3, 300), torch.nan, dtype=dtype)
        x[:, 5:15] = 1.0
        buffers = (packed.values, packed.columns, packed.groups, packed.rows)
        y = linear_ell(x.to(DEVICE), *buffers, 130).cpu()
        assert y[:, :3].tolist() == [[10.0, 2.0, 0.0]] * 3


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
def test_expand(dtype: torch.dtype) -> None:
    packed = Ell.from_dense(elements(200, 600, 0.3, torch.float32), dtype).to(DEVICE)
    scales = packed.scales if dtype == torch.int8 else None
    wanted = torch.float32 if dtype == torch.int8 else dtype
    buffers = (packed.values, packed.columns, packed.groups, packed.rows)
    dense = expand_ell(*buffers, packed.shape, wanted, scales)
    assert torch.equal(dense, packed.to_dense())


def test_refusals() -> None:
    packed = Ell.from_dense(torch.ones(4, 4)).to(DEVICE)
    good = {
        "x": torch.ones(1, 4, device=DEVICE),
        "values": packed.values,
        "columns": packed.columns,
        "groups": packed.groups,
        "rows": packed.rows,
        "out_features": 4,
    }
    cases = [
        ({"values": packed.values[:, :64]}, r"values: expected \[slots, 128\]"),
        ({"columns": packed.columns.int()}, r"columns: expected torch.uint8 \[4, 128\]"),
        ({"groups": packed.groups[:, :2]}, r"groups: expected torch.int32 \[groups, 3\]"),
        ({"rows": packed.rows.long()}, "rows: expected torch.uint16 or torch.int32"),
        ({"x": torch.ones(1, 4, device=DEVICE).half()}, "values: expected torch.float16"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=f"linear_ell: {message}"):
            linear_ell(**{**good, **change})
