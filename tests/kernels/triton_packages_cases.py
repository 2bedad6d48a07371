"""Packages of models on a GPU, saved there and loaded there; test_triton.py runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from triton_common import DEVICE, outputs
from triton_engine import as_if_on_gpu, weight_for

import sparse_engine as se
from sparse_engine.backends import CPU, CUDA

__all__ = ["outputs"]


def model_of(spec: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32))
    for linear in (model[0], model[2]):
        linear.weight.data = weight_for(spec, *linear.weight.shape)
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("spec", ["bsr:16x16", "bsr:4x1", "csr", "bitmask", "sellp", "nm:2:4"])
def test_there_and_back(spec: str, dtype: str, tmp_path: Path) -> None:
    """GPU -> package -> CPU and GPU: the same weights, and the layers of each device."""
    x = torch.randn(3, 64)
    with as_if_on_gpu(), torch.inference_mode():
        model = model_of(spec).to(DEVICE)
        se.sparsify_(model, se.SparseConfig(spec, dtype=dtype))
        assert CUDA.holds(model[0].packed)
        dense = model[0].packed.to_dense().float().cpu()
        y = model(x.to(DEVICE)).cpu()
        se.save(model, tmp_path / "package")
    loaded = se.load(tmp_path / "package", model=model_of(spec))
    assert CPU.holds(loaded[0].packed)
    torch.testing.assert_close(loaded[0].packed.to_dense().float(), dense, rtol=1e-6, atol=0)
    with torch.inference_mode():
        # On the CPU int8 quantises activations, and float weights meet them in float32.
        assert distance(loaded(x), y) < {"float32": 1e-5, "float16": 2e-3}.get(dtype, 2e-2)
    with as_if_on_gpu(), torch.inference_mode():
        moved = loaded.to(DEVICE)
        assert CUDA.holds(moved[0].packed)
        moved[0].packed.validate()
        assert distance(moved(x.to(DEVICE)).cpu(), y) < (2e-3 if dtype == "float16" else 1e-5)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative to the size of b."""
    return float((a - b).norm() / b.norm())


def test_an_lstm_moves(tmp_path: Path) -> None:
    """A network that was made on the CPU, saved and loaded, then on the GPU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(16, 32))
    for name, parameter in model.named_parameters():
        if "weight" in name:
            parameter.data = weight_for("bsr:16x16", *parameter.shape)
    x = torch.randn(5, 2, 16)
    with torch.inference_mode():
        expected = model(x)[0]
        se.sparsify_(model, "bsr:16x16")
        se.save(model, tmp_path / "package")
        twin = nn.Sequential(nn.LSTM(16, 32))
        loaded = se.load(tmp_path / "package", model=twin)
        torch.testing.assert_close(loaded(x)[0], expected, rtol=1e-4, atol=1e-5)
        with as_if_on_gpu():
            moved = loaded.to(DEVICE)
            torch.testing.assert_close(moved(x.to(DEVICE))[0].cpu(), expected, rtol=1e-4, atol=1e-5)
