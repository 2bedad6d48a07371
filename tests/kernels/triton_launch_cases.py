"""The kernels that launchers choose, compiled for sm_90 without a GPU; test_triton.py runs this.

A driver that only names its target replaces the GPU's. Arguments are specialised as on a GPU: sizes
of one become constants, aligned pointers and sizes are marked as such, tiles get descriptors.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sparse_engine.kernels import (
    expand_ell,
    expand_nm,
    launch,
    linear_bsr,
    linear_ell,
    linear_nm,
    plan_bsr,
    recurrent_step,
)
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sparse_engine.formats import BSR
from sparse_engine.packings import Ell, PackedNM

GATES = {"LSTM": 4, "GRU": 3, "RNN_RELU": 1}


class Driver:
    """As much of a driver as compiling needs."""

    utils = SimpleNamespace(get_device_properties=lambda i: {"max_shared_mem": launch.SHARED_BYTES})

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels, each compiled for its arguments instead of run."""
    names: list[str] = []

    def compile_only(self: Any, grid: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            made = self.run(*args, grid=grid, warmup=True, **kwargs)
            assert made.metadata.shared <= launch.SHARED_BYTES
            names.append(self.__name__)

        return call

    monkeypatch.setattr(JITFunction, "__getitem__", compile_only)
    monkeypatch.setattr(launch, "device_problem", lambda device: None)
    for name in ("linear_ell", "linear_nm"):  # also the names of their functions
        module = sys.modules[f"sparse_engine.kernels.{name}"]
        monkeypatch.setattr(module, "device_problem", lambda device: None)
    driver.set_active(Driver())  # for good: the process does nothing else
    return names


def blocks(out_features: int, in_features: int, rows: int, cols: int, dtype: torch.dtype) -> BSR:
    weight = torch.ones(out_features, in_features)
    weight[: rows // 2] = 0
    matrix = BSR.from_dense(weight, rows, cols)
    return BSR(matrix.shape, matrix.values.to(dtype), matrix.indices, matrix.pointers)


@pytest.mark.parametrize("tokens", [1, 40, 2048])
@pytest.mark.parametrize(
    ("rows", "cols", "in_features"), [(16, 16, 61), (64, 64, 200), (128, 16, 96), (64, 1, 33)]
)
def test_bsr(rows: int, cols: int, in_features: int, tokens: int, launched: list[str]) -> None:
    matrix = blocks(256, in_features, rows, cols, torch.bfloat16)
    x = torch.ones(tokens, in_features, dtype=torch.bfloat16)
    plan = plan_bsr(matrix.pointers, 1 << 16, programs=1000)
    buffers = (matrix.values, matrix.indices, matrix.pointers)
    linear_bsr(
        x, *buffers, torch.ones(256), "silu", torch.ones_like(x[:, :1]).expand(-1, 256), plan=plan
    )
    linear_bsr(x, *buffers, gated=True, plan=plan_bsr(matrix.pointers, 1, gated=True))
    tma = cols == 64 and tokens >= 128
    expected = "linear_bsr_tma_kernel" if tma else "linear_bsr_kernel"
    assert launched[-1] == expected
    assert ("linear_bsr_split_kernel" in launched) == (tokens <= 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_bsr_in_other_dtypes(dtype: torch.dtype, launched: list[str]) -> None:
    matrix = blocks(70, 61, 32, 32, dtype)
    kind = torch.float16 if dtype == torch.int8 else dtype
    scales = torch.ones(70) if dtype == torch.int8 else None
    plan = plan_bsr(matrix.pointers, 1 << 16)
    for tokens in (1, 300):
        x = torch.ones(tokens, 61, dtype=kind)
        buffers = (matrix.values, matrix.indices, matrix.pointers)
        linear_bsr(x, *buffers, out_features=70, scales=scales, plan=plan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(1, 1), (300, 600)])
def test_elements(shape: tuple[int, int], dtype: torch.dtype) -> None:
    packed = Ell.from_dense(torch.ones(shape), dtype)
    scales = packed.scales if dtype == torch.int8 else None
    kind = torch.bfloat16 if dtype == torch.int8 else dtype
    buffers = (packed.values, packed.columns, packed.groups, packed.rows)
    for tokens in (1, 2, 7):
        linear_ell(torch.ones(tokens, shape[1], dtype=kind), *buffers, shape[0], scales=scales)
    expand_ell(*buffers, shape, kind, scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("in_features", [1, 200])
def test_nm(in_features: int, dtype: torch.dtype) -> None:
    packed = PackedNM.from_dense(torch.ones(40, in_features), dtype, keep=4, of=4)
    scales = packed.scales if dtype == torch.int8 else None
    kind = torch.float16 if dtype == torch.int8 else dtype
    pattern = (packed.values, packed.positions, 4, 4)
    for tokens in (1, 5):
        linear_nm(torch.ones(tokens, in_features, dtype=kind), *pattern, scales=scales)
    expand_nm(*pattern, in_features, kind, scales)


@pytest.mark.parametrize("sequences", [1, 30])
@pytest.mark.parametrize("mode", GATES)
def test_recurrent_step(mode: str, sequences: int) -> None:
    gates = GATES[mode]
    matrix = blocks(gates * 32, 32, 16, 16, torch.bfloat16)

    def state(width: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.ones(sequences, width, dtype=dtype)

    recurrent_step(
        mode,
        state(gates * 32),
        state(32),
        matrix.values,
        matrix.indices,
        matrix.pointers,
        torch.ones(gates * 32) if mode == "GRU" else None,
        state(32, torch.float32) if mode == "LSTM" else None,
        state(32),
        state(32),
    )
