"""Cases of the recurrent step, on the interpreter or a GPU; test_triton.py runs them."""

from __future__ import annotations

import pytest
import torch
from sparse_engine.kernels import recurrent_step
from torch import Tensor
from triton_common import DEVICE, DTYPES, outputs, surrounded

from sparse_engine.formats import BSR
from sparse_engine.ops import reference

__all__ = ["outputs"]

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def gate_rows(rows: Tensor, gates: int, height: int) -> Tensor:
    """Rows [gates x units, ...] as the kernel has them: blocks of `height` units, gate
    after gate.
    """
    parts = rows.unflatten(0, (gates, -1))
    units = parts.shape[1]
    padded = rows.new_zeros(gates, -(-units // height) * height, *rows.shape[1:])
    padded[:, :units] = parts
    return padded.unflatten(1, (-1, height)).transpose(0, 1).flatten(0, 2)


def check(mode: str, batch: int, units: int, dtype: torch.dtype, height: int, cols: int) -> None:
    """Compare one step with float64."""
    gates = GATES[mode]
    generator = torch.Generator().manual_seed(batch + units)
    grid = (gates * -(-units // height), -(-units // cols))
    kept = torch.rand(grid, generator=generator) < 0.6
    kept[0] = False  # a gate of the first units has no blocks
    weight = torch.randn(gates * units, units, generator=generator) / units**0.5
    packed = gate_rows(weight, gates, height)
    mask = kept.repeat_interleave(height, 0).repeat_interleave(cols, 1)[:, :units]
    packed = (packed * mask).to(dtype)
    matrix = BSR.from_dense(packed.float(), height, cols).to(DEVICE)

    inputs = torch.randn(batch, gates * units, generator=generator).to(dtype)
    h = torch.randn(batch, units, generator=generator).to(dtype)
    c = torch.randn(batch, units, generator=generator)
    bias = torch.randn(gates * units, generator=generator) if mode == "GRU" else None
    cell = c.clone().to(DEVICE) if mode == "LSTM" else None
    h_next = torch.full((batch, units), torch.nan, dtype=dtype, device=DEVICE)
    y = surrounded(torch.full((batch, units), torch.nan, dtype=dtype))
    recurrent_step(
        mode,
        gate_rows(inputs.T, gates, height).T.contiguous().to(DEVICE),
        h.to(DEVICE),
        matrix.values.to(dtype),
        matrix.indices,
        matrix.pointers,
        None if bias is None else gate_rows(bias, gates, height).contiguous().to(DEVICE),
        cell,
        h_next,
        y,
    )
    # The weight in torch's order again.
    ordered = packed.double().unflatten(0, (-1, gates, height)).transpose(0, 1).flatten(1, 2)
    hidden = h.double() @ ordered[:, :units].flatten(0, 1).T
    if bias is not None:
        hidden = hidden + bias.double()
    truth = reference.recurrent_step(mode, inputs.double(), hidden, (h.double(), c.double()))
    eps = torch.finfo(dtype).eps
    assert torch.equal(h_next, y)
    torch.testing.assert_close(h_next.double().cpu(), truth[0], rtol=eps, atol=3e-6)
    if cell is not None:
        torch.testing.assert_close(cell.double().cpu(), truth[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", GATES)
def test_modes(mode: str, dtype: torch.dtype) -> None:
    check(mode, 3, 37, dtype, 16, 16)


@pytest.mark.parametrize("batch", [1, 16, 17, 70])
def test_batches(batch: int) -> None:
    check("LSTM", batch, 48, torch.float32, 16, 16)


@pytest.mark.parametrize(("height", "cols"), [(16, 1), (16, 32), (32, 16), (64, 64)])
def test_blocks(height: int, cols: int) -> None:
    for mode in ("LSTM", "GRU"):
        check(mode, 5, 100, torch.float16, height, cols)


def test_refusals() -> None:
    matrix = BSR.from_dense(torch.ones(64, 16), 16, 16).to(DEVICE)
    ones = torch.ones(2, 16, device=DEVICE)
    good = {
        "mode": "LSTM",
        "inputs": torch.ones(2, 64, device=DEVICE),
        "h": ones,
        "values": matrix.values,
        "indices": matrix.indices,
        "pointers": matrix.pointers,
        "bias": None,
        "c": ones.clone(),
        "h_next": ones.clone(),
        "y": ones.clone(),
    }
    cases = [
        ({"mode": "QRNN"}, "mode: expected one of LSTM"),
        ({"mode": "GRU"}, "out_features: 48 does not fit"),
        ({"c": None}, "c: an LSTM needs one"),
        ({"c": ones.half()}, r"c: expected torch.float32 \[2, 16\]"),
        ({"h": ones.half()}, "h: expected torch.float32 as the weight has"),
        ({"inputs": ones}, r"inputs: expected floats \[2, 64\]"),
        ({"h_next": ones}, "h_next: is h itself"),
        ({"y": torch.ones(16, 2, device=DEVICE).t()}, "y: rows are not contiguous"),
        ({"h": torch.ones(2, 32, device=DEVICE)[:, :16]}, "h: is not contiguous"),
        ({"c": torch.ones(2, 32, device=DEVICE)[:, :16]}, "c: is not contiguous"),
        ({"bias": ones[0]}, r"bias: expected torch.float32 \[64\]"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=f"recurrent_step: {message}"):
            recurrent_step(**{**good, **change})
