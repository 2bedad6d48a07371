"""Backends: which one serves a device and a packing, what each packs and times, what it refuses."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

import sparse_engine as se
from sparse_engine.backends import (
    BACKENDS,
    CPU,
    CUDA,
    META,
    WEIGHT_CLASSES,
    backend_of,
    backend_of_packing,
    cpu_timer,
    use_backend,
)
from sparse_engine.backends.cpu import CPUBackend
from sparse_engine.errors import UsageError
from sparse_engine.formats import CSR, FORMATS, FormatSpec, SellP
from sparse_engine.ops import pack
from sparse_engine.packings import Runs, SellP8


def test_devices_and_packings_have_one_backend() -> None:
    assert backend_of(torch.device("cpu")) is backend_of(torch.ones(1)) is CPU
    assert backend_of(torch.device("cuda", 1)) is CUDA
    assert backend_of(torch.ones(1, device="meta")) is META
    with pytest.raises(UsageError, match="no kernels on xla: use cpu or cuda"):
        backend_of(torch.device("xla"))
    for backend in BACKENDS:
        assert all(_by(packing) is backend for packing in backend.packings)
    assert not set(CPU.packings) & set(CUDA.packings)
    assert {*CPU.packings, *CUDA.packings, *FORMATS} - {SellP} == set(WEIGHT_CLASSES)


def _by(packing: type[Any]) -> object:
    return backend_of_packing(packing.__new__(packing))


def test_names_and_kinds_are_unique() -> None:
    """Packages and exported programs hold them."""
    assert len({cls.name for cls in WEIGHT_CLASSES}) == len(WEIGHT_CLASSES)
    assert len({cls.kind for cls in CUDA.packings}) == len(CUDA.packings)


def test_a_device_is_served_by_another_backend_until_the_end() -> None:
    other = CPUBackend()
    with use_backend(other):
        assert backend_of(torch.ones(1)) is other
    assert backend_of(torch.ones(1)) is CPU


def test_weights_stay_what_they_are_on_the_meta_device() -> None:
    layer = se.nn.SparseLinear(8, 4).to("meta")
    assert type(layer.packed) is Runs
    assert layer(torch.ones(2, 8, device="meta")).shape == (2, 4)
    stored = CSR(shape=(4, 8), values=torch.ones(0), indices=torch.ones(0), pointers=torch.ones(5))
    assert pack(stored.to("meta")).device.type == "meta"
    with pytest.raises(UsageError, match="csr is packed for no kernel"):
        META.linear(stored, torch.ones(2, 8), None, "none", None)
    with pytest.raises(UsageError, match="nothing runs on the meta device"):
        META.time({}, torch.device("meta"))


def test_a_row_without_kernels_is_refused() -> None:
    with pytest.raises(UsageError, match="no kernel on cpu has weights of float64"):
        CPU.packing_for(FormatSpec.parse("csr"), "float64")
    with pytest.raises(UsageError, match="no kernel on cuda has weights of complex64"):
        CUDA.packing_for(FormatSpec.parse("nm:2:4"), "complex64")


def test_the_dtype_that_a_weight_is_stored_in() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        weight = torch.ones(1, dtype=dtype)
        assert CUDA.value_dtype(weight, "float32") == str(dtype).removeprefix("torch.")
        assert CUDA.value_dtype(weight, "int8") == "int8"
        assert CPU.value_dtype(weight, "float32") == "float32"
    assert CUDA.value_dtype(torch.ones(1), "float32") == "float32"
    with pytest.raises(UsageError, match="float16 has kernels on GPUs only"):
        CPU.value_dtype(torch.ones(1), "float16")


def test_packed_integers_are_not_packed_again() -> None:
    packed = SellP8.from_dense(torch.eye(8))
    assert pack(packed) is pack(packed, "int8") is packed


def test_other_memory_passes_through_the_caches_between_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FLUSH_BYTES and the inputs are read before each sample, and their time does not count."""
    read: list[int] = []
    clock = [0.0]

    class Counted:
        def __init__(self, count: int) -> None:
            self.count = count

        def sum(self) -> None:
            read.append(4 * self.count)
            clock[0] += 10.0

    def call() -> None:
        clock[0] += 2e-6

    monkeypatch.setattr(cpu_timer.torch, "zeros", Counted)
    monkeypatch.setattr(cpu_timer, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cpu_timer, "SECONDS", 1e9)
    inputs: Any = (Counted(8),)
    times = CPU.time({"one": call, "two": call}, torch.device("cpu"), inputs, repeats=3)
    assert read == [cpu_timer.FLUSH_BYTES, 32] * 2 * (cpu_timer.TURNS + 1)
    assert times == {"one": pytest.approx(2.0), "two": pytest.approx(2.0)}
    for between, expected in ((1000, 1000), (0, 0), (1 << 40, cpu_timer.FLUSH_BYTES)):
        read.clear()
        CPU.time({"one": call}, torch.device("cpu"), between=between)
        assert set(read) == {expected}
    monkeypatch.setattr(cpu_timer, "SECONDS", 1.0)
    read.clear()
    CPU.time({"one": call}, torch.device("cpu"))
    assert len(read) == 2  # one turn to warm up, and one that exceeds the limit


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_weights_that_differ_are_not_fused() -> None:
    """Fused ones: triton_models_cases.py."""
    blocks = [FormatSpec.parse(f"bsr:{side}x16") for side in (16, 32)]
    square, tall = (CUDA.pack(spec.from_dense(torch.eye(64))) for spec in blocks)
    whole, parts = CUDA.fuse([square, square]) or (None, [])
    assert whole is not None
    assert torch.equal(whole.to_dense(), torch.eye(64).repeat(2, 1))
    assert all(torch.equal(part.to_dense(), torch.eye(64)) for part in parts)
    wide = CUDA.pack(blocks[0].from_dense(torch.ones(64, 32)))
    ragged = CUDA.pack(blocks[0].from_dense(torch.ones(40, 64)))
    short = CUDA.pack(blocks[0].from_dense(torch.ones(32, 64)))
    half = CUDA.pack(blocks[0].from_dense(torch.eye(64)), "float16")
    elements = CUDA.pack(CSR.from_dense(torch.eye(64)))
    for other in (tall, wide, ragged, half, elements):
        assert CUDA.fuse([square, other]) is None
    assert CUDA.fuse([square, short]) is not None
    assert CUDA.fuse([square, short], gated=True) is None
    assert CPU.fuse([CPU.pack(CSR.from_dense(torch.eye(4)))] * 2) is None


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_recurrent_weights_on_a_gpu_are_blocks_of_a_gate() -> None:
    """A step is then one kernel; on the CPU formats are timed."""
    wide, narrow = torch.ones(32, 128), torch.ones(32, 128)
    narrow[:, 1::2] = 0
    scattered = torch.eye(128)
    for weight, spec in ((wide, "bsr:16x64"), (narrow, "bsr:16x1"), (scattered, "csr")):
        assert CUDA.recurrent_format(weight, 16) == spec
        assert CPU.recurrent_format(weight, 16) is None
        packed = CUDA.pack(FormatSpec.parse(spec).from_dense(weight))
        assert CUDA.has_step_kernel(packed, 16) == (spec != "csr")
        assert not CUDA.has_step_kernel(packed, 32)
    integers = CUDA.pack(FormatSpec.parse("bsr:16x64").from_dense(wide), "int8")
    assert not CUDA.has_step_kernel(integers, 16)
    assert not CPU.has_step_kernel(CPU.pack(FormatSpec.parse("bsr:16x64").from_dense(wide)), 16)
