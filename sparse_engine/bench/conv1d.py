"""bench kernel --op conv1d: a convolution over time against dense torch.

Both run the same random weight [n, k, width], padded so that there are as many steps as before, in the
same dtype; torch has no int8 to compare with. `windows` is the same weight by the way of other formats and of
GPUs: windows copied as rows of a linear layer. `product` is the sparse product alone, on panels that
are there already: what no copying of windows can be faster than.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine import _core
from sparse_engine.bench.grid import sparsity_of
from sparse_engine.bench.kernel import OnPanels, carrier, forced_isa
from sparse_engine.bench.machine import BusyMeter
from sparse_engine.bench.matrices import check_size
from sparse_engine.bench.patterns import random_weight
from sparse_engine.bench.timing import CallSampler, samples_in_turn
from sparse_engine.config import DTYPES, SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.formats import FormatSpec
from sparse_engine.nn import SparseConv1d


@dataclass(frozen=True)
class ConvRow:
    """One measured point: n and k channels, m sequences. Times are medians of a call in microseconds."""

    op: str
    n: int
    k: int
    width: int
    steps: int
    m: int
    sparsity: float
    format: str
    dtype: str
    isa: str
    threads: int
    time_us: float
    dense_time_us: float | None
    speedup: float | None
    windows_us: float
    """By windows copied as rows."""
    product_us: float | None
    """The product alone; None for a packing that multiplies no panels."""
    gflops: float
    """Multiply-adds with non-zeros, two operations each."""
    roof_fraction: float
    """Of what the cores can multiply and add."""
    weight_bytes: int
    dense_bytes: int
    max_rel_err: float
    """Against float64 on the stored weight, over the largest output."""
    kernel: str
    refused: dict[str, str]
    samples: int = 0
    """How many the medians are of."""
    spread_us: dict[str, tuple[float, float]] = field(default_factory=dict)
    """10th and 90th percentile of the samples of each time, microseconds."""


@dataclass(frozen=True)
class ConvGrid:
    """What to measure: every combination."""

    n: tuple[int, ...] = (128,)
    k: tuple[int, ...] = (128,)
    m: tuple[int, ...] = (1, 8, 32)
    sparsity: tuple[float, ...] = (0.8, 0.9)
    format: tuple[str, ...] = ("csr",)
    dtype: tuple[str, ...] = ("float32",)
    width: int = 5
    steps: int = 30
    rounds: int = 9

    def __post_init__(self) -> None:
        for name in ("n", "k", "m"):
            if any(size < 1 for size in getattr(self, name)):
                raise UsageError(f"-{name} must be 1 or more, got {getattr(self, name)}")
        if self.width < 1 or self.steps < 1:
            raise UsageError("--width and --steps must be 1 or more")
        if any(not 0 <= s < 1 for s in self.sparsity):
            raise UsageError(f"sparsity is a fraction of zeros in [0, 1), got {self.sparsity}")
        for spec in self.format:
            if spec != "auto":
                FormatSpec.parse(spec)
        for dtype in self.dtype:
            if dtype not in DTYPES:
                raise UsageError(f"dtype {dtype!r}: use {' or '.join(DTYPES)}")
        for n, k in product(self.n, self.k):
            check_size(n, k * self.width, "a convolution's weight")
            check_size(self.steps * max(self.m), max(n, k * self.width), "windows")

    def layers(self) -> list[tuple[str, int, int, str, float]]:
        """dtype, channels out and in, format and sparsity of each layer, each once."""
        axes = product(self.dtype, self.n, self.k, self.format, self.sparsity)
        return list(
            dict.fromkeys((d, n, k, spec, sparsity_of(spec, s)) for d, n, k, spec, s in axes)
        )

    def __len__(self) -> int:
        return len(self.layers()) * len(set(self.m))


def bench_conv1d(
    grid: ConvGrid,
    isa: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    known: set[tuple[Any, ...]] | None = None,
    busy: BusyMeter | None = None,
) -> Iterator[ConvRow]:
    """Measure every point of `grid`, on `isa` if given; raises UsageError for one not at hand.

    known: points and kernels measured before, which are left out and added to; busy: looks at the
    machine before the first point and before each.
    """
    known = set() if known is None else known
    busy = busy or BusyMeter()
    sequences = tuple(dict.fromkeys(grid.m))
    with forced_isa(isa):
        busy.start()
        peaks = {dtype: _core.peak_gflops(dtype) for dtype in grid.dtype}
        for i, (dtype, n, k, spec, sparsity) in enumerate(grid.layers()):
            conv = random_conv(n, k, grid.width, sparsity, spec)
            sparse = SparseConv1d.from_dense(conv, SparseConfig(spec, dtype))
            for j, m in enumerate(sequences):
                if progress is not None:
                    name = f"conv1d {n} x {k} {spec} {sparsity:.0%} {dtype} m={m}"
                    progress(i * len(sequences) + j, len(grid), name)
                layer: Any = sparse.linears[0]
                key = dtype, n, k, spec, sparsity, m, layer.kernel(m * grid.steps)
                if key in known:
                    continue
                known.add(key)
                busy.look()
                yield measure(grid, conv, sparse, spec, dtype, m, peaks[dtype])


def random_conv(n: int, k: int, width: int, sparsity: float, spec: str) -> nn.Conv1d:
    """torch's layer with `sparsity` zeros in the format's pattern, padded to keep the steps."""
    conv = nn.Conv1d(k, n, width, padding="same").eval().requires_grad_(False)
    conv.weight.copy_(random_weight(n, k * width, sparsity, spec).view(n, k, width))
    return conv


@torch.inference_mode()
def measure(
    grid: ConvGrid,
    conv: nn.Conv1d,
    sparse: SparseConv1d,
    spec: str,
    dtype: str,
    m: int,
    peak: float,
) -> ConvRow:
    """One point."""
    x = torch.randn(m, conv.in_channels, grid.steps, generator=torch.Generator().manual_seed(1))
    x = x.to(carrier(dtype))
    left, right = (grid.width - 1) // 2, grid.width // 2
    calls = {
        "time": CallSampler(lambda: sparse(x)),
        "windows": CallSampler(lambda: sparse.multiply_windows(x, left, right)),
    }
    if dtype != "int8":
        dense = copy.deepcopy(conv).to(DTYPES[dtype])
        calls["dense_time"] = CallSampler(lambda: dense(x))
    layer: Any = sparse.linears[0]
    packed = layer.packed
    on_panels = OnPanels.of(packed, torch.randn(m * grid.steps, packed.shape[1]))
    if on_panels is not None:
        calls["product"] = CallSampler(on_panels)
    samples = samples_in_turn(calls, grid.rounds)
    times = {name: taken.median for name, taken in samples.items()}
    nnz = int(packed.to_dense().count_nonzero())
    flops = 2.0 * nnz * m * grid.steps
    speedup = times["dense_time"] / times["time"] if "dense_time" in times else None
    us = {name: round(seconds * 1e6, 1) for name, seconds in times.items()}
    return ConvRow(
        op="conv1d",
        n=conv.out_channels,
        k=conv.in_channels,
        width=grid.width,
        steps=grid.steps,
        m=m,
        sparsity=round(1 - nnz / conv.weight.numel(), 4),
        format=spec,
        dtype=dtype,
        isa=_core.active_isa(),
        threads=torch.get_num_threads(),
        time_us=us["time"],
        dense_time_us=us.get("dense_time"),
        speedup=None if speedup is None else round(speedup, 2),
        windows_us=us["windows"],
        product_us=us.get("product"),
        gflops=round(flops / times["time"] * 1e-9, 1),
        roof_fraction=round(flops / peak * 1e-9 / times["time"], 3),
        weight_bytes=packed.nbytes,
        dense_bytes=conv.weight.numel() * DTYPES[dtype].itemsize,
        max_rel_err=float(f"{_error(sparse, x):.2e}"),
        kernel=layer.kernel(m * grid.steps),
        refused={} if speedup is not None else {"torch": "has no int8 convolution over time"},
        samples=grid.rounds,
        spread_us={name: taken.spread_us() for name, taken in samples.items()},
    )


def _error(sparse: SparseConv1d, x: Tensor) -> float:
    """Of the first sequence."""
    truth = sparse.to_dense(torch.float32).double()(x[:1].double())
    return float((sparse(x[:1]).double() - truth).abs().max() / truth.abs().max())
