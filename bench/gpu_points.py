"""The rows of bench/gpu.py: what is measured, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import median
from time import perf_counter
from typing import Any

import torch
from gpu_weights import Setting, bare_bytes, one_line, pack_as, random_weight
from torch import nn
from torch.nn import functional as F

from sparse_engine.backends.cuda_timer import FLUSH_BYTES, time_on_gpu
from sparse_engine.config import SparseConfig
from sparse_engine.formats import Format
from sparse_engine.nn import SparseLSTM
from sparse_engine.nn.recurrent.cuda import step_kernel
from sparse_engine.ops import linear_kernel, reference, run_linear

SPARSITIES = (0.5, 0.8, 0.9)
# Limits of the largest error over the largest magnitude: bfloat16 has 8 bits, and an LSTM rounds
# its state at every step.
LIMIT, LSTM_LIMIT = 1e-2, 5e-2


@dataclass(frozen=True)
class Row:
    """A row of the table. Times are medians in microseconds; `problem` is one line or empty."""

    op: str
    shape: str
    tokens: int
    format: str
    dtype: str
    sparsity: float
    kernel: str | None = None
    time_us: float | None = None
    dense_us: float | None = None
    """Of cuBLAS or cuDNN in bfloat16."""
    torch_sparse_us: float | None = None
    against: str = ""
    ratio: float | None = None
    target: float | None = None
    gbytes_per_second: float | None = None
    bandwidth_share: float | None = None
    tflops: float | None = None
    """Without the products with zeros."""
    weight_bytes: int | None = None
    overhead: float | None = None
    max_rel_err: float | None = None
    """Against float64, over the largest magnitude."""
    note: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Point:
    """What a row measures. shape: outputs x inputs; of an LSTM, hidden size and steps."""

    op: str
    shape: tuple[int, int]
    tokens: int
    format: str
    sparsity: float
    target: float | None = None
    dtype: str = "bfloat16"
    against: str = "cuBLAS"
    note: str = ""

    @property
    def name(self) -> str:
        """The name that --only searches."""
        size = f"{self.shape[0]}x{self.shape[1]}"
        parts = (self.op, f"M={self.tokens}", size, self.format, self.dtype, f"{self.sparsity:.0%}")
        return " ".join(parts) + ("" if self.against == "cuBLAS" else f" against {self.against}")

    def row(self) -> Row:
        """The row without figures."""
        shape = f"{self.shape[0]}x{self.shape[1]}"
        if self.op == "LSTM":
            shape = f"{self.shape[0]}, {self.shape[1]} steps"
        point = (self.op, shape, self.tokens, self.format, self.dtype, self.sparsity)
        return Row(*point, against=self.against, target=self.target, note=self.note)

    def run(self, at: Setting) -> dict[str, Any]:
        """The figures of the row."""
        return (measure_lstm if self.op == "LSTM" else measure_linear)(self, at)

    def small(self) -> Point:
        """The same code on little data."""
        shape = (self.shape[0] // 64, 2) if self.op == "LSTM" else (128, 256)
        return replace(self, shape=shape, tokens=min(self.tokens, 130))


def points(tiny: bool) -> list[Point]:
    """The rows of the table."""
    found = []

    def add(
        op: str,
        shape: tuple[int, int],
        tokens: int,
        spec: str,
        targets: tuple[float | None, ...] = (None, None, None),
        **more: str,
    ) -> None:
        for sparsity, target in zip(SPARSITIES, targets, strict=True):
            found.append(Point(op, shape, tokens, spec, sparsity, target, **more))

    up, square = (14336, 4096), (8192, 8192)
    add("linear", up, 1, "bsr:32x32", (1.6, 3.2, 5.0))
    add("linear", up, 16, "bsr:64x64", (1.4, 3.0, 4.5))
    add("linear", (28672, 8192), 1, "csr", (1.1, 2.5, 4.5))
    for spec in ("bsr:128x128", "bsr:128x16", "bsr:128x1"):
        note = "target of the best of bsr:128x128, 128x16, 128x1"
        add("linear", square, 8192, spec, (1.3, 3.2, 6.0), note=note)
    add("linear", square, 8192, "bsr:64x64", (None, 1.9, 3.6))
    found.append(Point("linear", up, 1, "nm:2:4", 0.5, 1.45))
    add("linear", up, 1, "bsr:32x32", dtype="int8")
    add("SwiGLU", (2 * up[0], up[1]), 1, "bsr:32x32")
    for tokens, size, side, target in (
        (8192, square, 64, 2.0),
        (16, up, 32, 3.0),
        (16, up, 16, 3.0),
    ):
        add("linear", size, tokens, f"bsr:{side}x{side}", (target,) * 3, against="torch.sparse")
    lstm = Point("LSTM", (1024, 512), 1, "bsr:16x16", 0.9, 3.0, against="cuDNN")
    lstm = replace(lstm, note="every step reads its weights from L2, if they fit")
    for hidden in (1024, 2048):
        found += [replace(lstm, shape=(hidden, 512), tokens=batch) for batch in (1, 16)]
    return [point.small() for point in found] if tiny else found


Calls = Mapping[str, Callable[[], object]]


def in_turn(calls: Calls, at: Setting) -> tuple[Any, dict[str, float], list[str]]:
    """Result of "ours", microseconds of each call, and remarks on calls that failed or fit no
    graph.
    """
    sound, once, remarks = dict(calls), {}, []
    y: Any = None
    for name, call in calls.items():
        began = perf_counter()
        try:
            result = call()
        except Exception as error:
            if name == "ours":
                raise
            del sound[name]
            remarks.append(f"{name}: {one_line(error)}")
            continue
        y = result if name == "ours" else y
        once[name] = (perf_counter() - began) * 1e6
    if not at.on_gpu:  # replaces the timer, so that the rest can be tried
        return y, once, remarks
    try:
        return y, time_on_gpu(sound, at.device, at.rounds), remarks
    except Exception as error:
        times = time_on_gpu({"ours": sound.pop("ours")}, at.device, at.rounds)
        remarks.append(f"{', '.join(sound)} launched from Python, in no graph: {one_line(error)}")
        times |= {name: launched(call, at) for name, call in sound.items()}
        return y, times, remarks


def launched(call: Callable[[], object], at: Setting) -> float:
    """Median microseconds of a call that is launched from Python, with cold caches."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=at.device)
    spans = []
    for _ in range(at.rounds):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize(at.device)
    return median(begin.elapsed_time(end) * 1e3 for begin, end in spans)


def figures(
    times: dict[str, float],
    remarks: list[str],
    against: str,
    packed: Sequence[Format],
    read: int,
    products: int,
    error: float,
    limit: float,
) -> dict[str, Any]:
    """The fields of measured rows. read: bytes; products: with non-zeros."""
    seconds = times["ours"] * 1e-6
    if not error <= limit:
        remarks = [f"differs from float64 by {error:.1e}", *remarks]
    size = sum(p.nbytes for p in packed)
    return {
        "time_us": round(times["ours"], 2),
        "dense_us": round(times["dense"], 2) if "dense" in times else None,
        "torch_sparse_us": round(times["torch.sparse"], 2) if "torch.sparse" in times else None,
        "ratio": round(times[against] / times["ours"], 3) if against in times else None,
        "gbytes_per_second": round(read / seconds * 1e-9, 1),
        "tflops": round(2 * products / seconds * 1e-12, 2),
        "weight_bytes": size,
        "overhead": round(size / sum(map(bare_bytes, packed)), 4),
        "max_rel_err": float(f"{error:.2e}"),
        "problem": "; ".join(remarks),
        "wrong": not error <= limit,
    }


def measure_linear(point: Point, at: Setting) -> dict[str, Any]:
    """A linear layer, or two with a gate, against dense ones, or against the blocks of torch."""
    gated = point.op == "SwiGLU"
    dtype = torch.bfloat16
    weight = random_weight(*point.shape, point.format, point.sparsity, at, dtype)
    packed: Any = pack_as(point.format, weight, getattr(torch, point.dtype), gated)
    x = at.randn(point.tokens, point.shape[1])
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: run_linear(packed, x, None, "silu" if gated else "none", None),
        "dense": lambda: F.linear(x, weight),
    }
    if gated:
        left, right = weight.chunk(2)
        calls["dense"] = lambda: F.silu(F.linear(x, left)) * F.linear(x, right)
    if point.against == "torch.sparse":
        blocks = weight.to_sparse_bsr((packed.rows, packed.cols))
        calls["torch.sparse"] = lambda: F.linear(x, blocks)
    y, times, remarks = in_turn(calls, at)
    some = slice(None, None, max(1, point.tokens // 128))  # of all tiles
    truth = reference.linear(packed.to_dense(), x[some])
    if gated:
        truth = F.silu(truth[:, : len(left)]) * truth[:, len(left) :]
    error = float((y[some].double() - truth).abs().max() / truth.abs().max())
    against = "torch.sparse" if point.against == "torch.sparse" else "dense"
    products = packed.nnz * point.tokens
    found = figures(times, remarks, against, [packed], packed.nbytes, products, error, LIMIT)
    return {"kernel": linear_kernel(packed, point.tokens), **found}


def measure_lstm(point: Point, at: Setting) -> dict[str, Any]:
    """An LSTM of one layer over whole sequences, against cuDNN."""
    (hidden, steps), batch = point.shape, point.tokens
    made: dict[str, Any] = {"device": at.device, "dtype": torch.bfloat16}
    network: Any = nn.LSTM(hidden, hidden, **made).eval()
    for weight in (network.weight_ih_l0, network.weight_hh_l0):
        # A gate has whole blocks of rows, so that blocks in torch's order are blocks in ours.
        pattern = random_weight(4 * hidden, hidden, point.format, point.sparsity, at, weight.dtype)
        weight.masked_fill_(pattern == 0, 0)
    sparse = SparseLSTM.from_dense(network, SparseConfig(point.format, point.dtype))
    x = at.randn(steps, batch, hidden)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: sparse(x)[0],
        "dense": lambda: network(x)[0],
    }
    y, times, remarks = in_turn(calls, at)
    exact = nn.LSTM(hidden, hidden, device=at.device, dtype=torch.float64).eval()
    exact.load_state_dict(network.state_dict())
    truth = exact(x.double())[0]
    error = float((y.double() - truth).abs().max() / truth.abs().max())
    layers: list[Any] = [sparse.get_submodule(name) for name in ("ih_l0", "hh_l0")]
    of_inputs, of_steps = packed = [layer.packed for layer in layers]
    read = of_inputs.nbytes + steps * of_steps.nbytes  # the latter mostly from L2
    products = sum(p.nnz for p in packed) * steps * batch
    found = figures(times, remarks, "dense", packed, read, products, error, LSTM_LIMIT)
    return {"kernel": step_kernel(layers[1]), **found}


@dataclass(frozen=True)
class Facts:
    """The device, its bandwidth, the rate of cuBLAS, and the time of a graph of one short
    kernel.
    """

    name: str = "device"

    def run(self, at: Setting) -> dict[str, Any]:
        """Everything that does not depend on a row."""
        count, side = (1 << 18, 256) if at.tiny else (1 << 29, 8192)
        big, one = torch.ones(count, device=at.device), torch.ones(1, device=at.device)
        copy, x, w = torch.empty_like(big), at.randn(side, side), at.randn(side, side)
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda: one.add_(1),  # one short kernel
            "sum": big.sum,
            "copy": lambda: copy.copy_(big),
            "cublas": lambda: F.linear(x, w),
        }
        _, times, _ = in_turn(calls, at)
        about = {"device": "CPU", "capability": "", "processors": 0, "cuda": ""}
        if at.on_gpu:
            device = torch.cuda.get_device_properties(at.device)
            about = {
                "device": device.name,
                "capability": f"{device.major}.{device.minor}",
                "processors": device.multi_processor_count,
                "cuda": str(torch.version.cuda),
            }
        return {
            **about,
            "torch": torch.__version__,
            "triton": version("triton"),
            "measured": at.on_gpu,
            "sum_gbytes_per_second": round(big.nbytes / times["sum"] * 1e-3, 1),
            "copy_gbytes_per_second": round(2 * big.nbytes / times["copy"] * 1e-3, 1),
            "cublas_shape": f"{side}x{side}x{side}",
            "cublas_tflops": round(2 * side**3 / times["cublas"] * 1e-6, 1),
            "graph_floor_us": round(times["ours"], 2),
            "rounds": at.rounds,
        }
