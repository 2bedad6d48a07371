"""bench kernel: one linear layer, over sizes, sparsities, formats and dtypes, against its peers.

Dense is the fastest of the dense peers asked for, in the same dtype, timed in turn with the sparse
call. The sparse call is the whole op on row-major tensors: activations into panels, the kernel,
results back out. `panels_time_us` is the product alone, on activations that already lie in panels
and stay there, as inside a native block. Weights are as warm as repeated calls leave them. The roof
is max(bytes read / bandwidth, 2 nnz m / peak FLOP/s), bandwidth and peak measured in the same run on
a footprint of the same size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.auto.format import choose_format
from sparse_engine.backends import CPU
from sparse_engine.backends.cpu_table import FEW_TOKENS
from sparse_engine.bench.grid import Case, KernelGrid
from sparse_engine.bench.hints import likely_faster
from sparse_engine.bench.machine import BusyMeter
from sparse_engine.bench.rivals import Rivals, max_error
from sparse_engine.bench.timing import CallSampler, Sampler, samples_in_turn
from sparse_engine.config import DTYPES, SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format, FormatSpec
from sparse_engine.ops import linear_kernel, run_linear, weight_handle


@dataclass(frozen=True)
class KernelRow:
    """One measured point. Times are medians in microseconds; bytes are those of the weight."""

    op: str
    n: int
    k: int
    m: int
    sparsity: float
    format: str
    dtype: str
    isa: str
    threads: int
    time_us: float
    dense_time_us: float
    speedup: float
    gflops: float
    roof_fraction: float
    weight_bytes: int
    dense_bytes: int
    max_rel_err: float
    kernel: str
    panels_time_us: float | None
    """The op on panels: float32 activations that no transposition moves; None where there is none."""
    dense_engine: str
    """Whose time `dense_time_us` is: the fastest dense peer of the same dtype."""
    peers: dict[str, float]
    """Microseconds of every peer that ran."""
    refused: dict[str, str]
    """Why the others did not, one line each."""
    source: str = "random"
    """The random pattern (see `Pattern`), or the file or layer that the weight comes from."""
    gbytes_per_s: float = 0.0
    """Bytes of weight, activations and results over `time_us`."""
    samples: int = 0
    """How many the medians are of."""
    spread_us: dict[str, tuple[float, float]] = field(default_factory=dict)
    """10th and 90th percentile of the samples of "time", "panels" and every peer, microseconds."""
    busy: float = 0.0
    """Share of the time that other programs took just before this point was measured."""
    likely_faster: str = ""
    """A format that the cost model expects to be faster for so many tokens, or none."""


class KernelBench:
    """Measures grids; what was measured with the same kernel on a lower ISA is not measured again."""

    def __init__(self, busy: BusyMeter | None = None) -> None:
        self.busy = busy or BusyMeter()
        self.repeated: dict[str, int] = {}
        """How many points an ISA left out, since a lower one has measured their kernel."""
        self._kernels: set[tuple[Any, ...]] = set()

    def run(
        self,
        grid: KernelGrid,
        isa: str | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Iterator[KernelRow]:
        """Measure every point of `grid`, on `isa` if given; raises UsageError for one not at hand."""
        with forced_isa(isa), Rivals(grid.against) as rivals:
            peaks = {dtype: _core.peak_gflops(dtype) for dtype in grid.dtype}
            self.busy.start()
            done = 0
            rows: dict[tuple[Any, ...], KernelRow] = {}
            for case in grid.cases():
                name = f"{case.n}x{case.k} {case.format} {case.sparsity:.0%} {case.dtype}"
                weight = case.weight(grid.pattern)
                layer: Layer | None = None
                for m in grid.tokens():
                    if progress is not None:
                        progress(done, len(grid), f"{name} m={m}")
                    done += 1
                    spec = case.format if case.format != "auto" else _chosen(weight, case.dtype, m)
                    point = replace(case, format=spec), m
                    if point not in rows:
                        if layer is None or layer.spec != spec:
                            layer = Layer.of(weight, spec, case.dtype, case.source)
                        if self._known(point, layer, m):
                            level = isa or ""
                            self.repeated[level] = self.repeated.get(level, 0) + 1
                            continue
                        busy = self.busy.look()
                        row = measure(layer, m, rivals, peaks[case.dtype], grid.rounds)
                        rows[point] = replace(
                            row, busy=busy, likely_faster=likely_faster(layer.weight, row)
                        )
                    row = rows[point]
                    yield replace(row, format=f"auto:{spec}") if case.format == "auto" else row

    def warning(self) -> str | None:
        """A line where the machine was busy."""
        return self.busy.warning()

    def _known(self, point: tuple[Case, int], layer: Layer, m: int) -> bool:
        key = *point, linear_kernel(layer.packed_for(m), m)
        known = key in self._kernels
        self._kernels.add(key)
        return known


def _chosen(weight: Tensor, dtype: str, m: int) -> str:
    """What "auto" takes for `m` tokens, dense apart."""
    config = SparseConfig(dtype=dtype, tokens=(m,))
    return choose_format(weight.to(carrier(dtype)), config, dense=False).format


def bench_kernel(
    grid: KernelGrid,
    isa: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[KernelRow]:
    """Measure every point of `grid`, on `isa` if given; raises UsageError for one not at hand."""
    return KernelBench().run(grid, isa, progress)


@contextmanager
def forced_isa(isa: str | None) -> Iterator[None]:
    """The kernels of `isa` until the end; raises UsageError for one that this machine has not."""
    previous = os.environ.get("SPARSE_ENGINE_ISA")
    if isa is not None:
        os.environ["SPARSE_ENGINE_ISA"] = isa
    try:
        try:
            _core.active_isa()
        except ValueError as error:
            raise UsageError(str(error)) from error
        yield
    finally:
        if isa is not None:
            os.environ.pop("SPARSE_ENGINE_ISA")
            if previous is not None:
                os.environ["SPARSE_ENGINE_ISA"] = previous


@dataclass(frozen=True)
class Layer:
    """One sparse layer, packed for many tokens and, where that differs, for a few.

    weight: what dense peers multiply by, float32; stored: what the packing holds, int8 dequantised.
    """

    spec: str
    dtype: str
    weight: Tensor
    stored: Tensor
    packed: Format
    source: str = "random"

    @classmethod
    def of(cls, weight: Tensor, spec: str, dtype: str, source: str = "random") -> Layer:
        """Store a float32 weight [out, in] as `spec` says, and pack it."""
        weight = weight.to(carrier(dtype))
        packed = CPU.pack(FormatSpec.parse(spec).from_dense(weight), dtype)
        stored = packed.to_dense() if dtype == "int8" else weight
        return cls(spec, dtype, weight.float(), stored, packed, source)

    def packed_for(self, tokens: int) -> Format:
        """The weight as a layer is packed whose config has only as many tokens."""
        return self._for_a_few if tokens <= FEW_TOKENS else self.packed

    @cached_property
    def _for_a_few(self) -> Format:
        spec = FormatSpec.parse(self.spec)
        if isinstance(self.packed, CPU.packing_for(spec, self.dtype, (FEW_TOKENS,))):
            return self.packed
        return CPU.pack(spec.from_dense(self.stored), self.dtype, (FEW_TOKENS,))

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of the format's blocks."""
        params = FormatSpec.parse(self.spec).params
        return params.get("rows", 1), params.get("cols", 1)


def carrier(dtype: str) -> torch.dtype:
    """Of the activations, and of the weight before it is packed: int8 is quantised from float32."""
    return torch.float32 if dtype == "int8" else DTYPES[dtype]


@dataclass(frozen=True)
class OnPanels:
    """The op inside a native block: panels of float32 activations in and out."""

    weight: _core.Weight
    x: Tensor
    """[panels, in, width]"""
    y: Tensor
    """[panels, out, width]"""

    @classmethod
    def of(cls, packed: Format, x: Tensor) -> OnPanels | None:
        """On x [tokens, in]; None for too few tokens, or a packing that multiplies no panels."""
        weight, (n, k) = weight_handle(packed), packed.shape
        width = weight.panel_width(len(x))
        if len(x) < 16 or not width:
            return None
        lanes = F.pad(x.float(), (0, 0, 0, -len(x) % width)).view(-1, width, k)
        panels = lanes.transpose(1, 2).contiguous()
        return cls(weight, panels, panels.new_empty(len(panels), n, width))

    def __call__(self) -> None:
        self.weight.linear_on_panels(self.x.numpy(), self.y.numpy())

    def rows(self, tokens: int) -> Tensor:
        """The result of the last call, [tokens, out]."""
        return self.y.transpose(1, 2).flatten(0, 1)[:tokens]


@torch.inference_mode()
def measure(layer: Layer, m: int, rivals: Rivals, peak: float, rounds: int) -> KernelRow:
    """One point: `layer` on `m` tokens against `rivals`, `rounds` samples of each.

    peak: GFLOP/s that the processor can do in the layer's dtype.
    """
    packed, (n, k) = layer.packed_for(m), layer.packed.shape
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(carrier(layer.dtype))

    def call() -> Tensor:
        return run_linear(packed, x, None, "none", None)

    y = call()
    error = max_error(y, layer.stored, x, most=128)
    samplers: dict[str, Sampler] = {"sparse": CallSampler(call)}
    if (on_panels := OnPanels.of(packed, x)) is not None:
        samplers["panels"] = CallSampler(on_panels)
        error = max(error, max_error(on_panels.rows(m), layer.stored, x, most=128))
    peers = rivals.start(layer.weight, x.float(), layer.dtype, layer.block)
    samples = samples_in_turn(samplers | dict(peers), rounds)
    times = {name: taken.median for name, taken in samples.items()}
    dense = [peer.name for peer in rivals.peers if peer.dense and peer.name in times]
    if not dense:
        told = "; ".join(f"{name} {why}" for name, why in rivals.refused.items())
        raise UsageError(f"no dense engine to compare with: {told}")
    fastest = min(dense, key=times.__getitem__)
    nnz = int(layer.stored.count_nonzero())
    flops = 2.0 * nnz * m
    moved = packed.nbytes + x.nbytes + y.nbytes
    bandwidth = _core.read_gbytes_per_second(max(moved, 4096))
    roof = max(moved / bandwidth, flops / peak) * 1e-9
    return KernelRow(
        op="linear",
        n=n,
        k=k,
        m=m,
        sparsity=round(1 - nnz / (n * k), 4),
        format=layer.spec,
        dtype=layer.dtype,
        isa=_core.active_isa(),
        threads=torch.get_num_threads(),
        time_us=round(times["sparse"] * 1e6, 2),
        dense_time_us=round(times[fastest] * 1e6, 2),
        speedup=round(times[fastest] / times["sparse"], 3),
        gflops=round(flops / times["sparse"] * 1e-9, 2),
        roof_fraction=round(roof / times["sparse"], 3),
        weight_bytes=packed.nbytes,
        dense_bytes=n * k * DTYPES[layer.dtype].itemsize,
        max_rel_err=float(f"{error:.2e}"),
        kernel=linear_kernel(packed, m),
        panels_time_us=round(times["panels"] * 1e6, 2) if "panels" in times else None,
        dense_engine=fastest,
        peers={p.name: round(times[p.name] * 1e6, 2) for p in rivals.peers if p.name in times},
        refused=dict(rivals.refused),
        source=layer.source,
        gbytes_per_s=round(moved / times["sparse"] * 1e-9, 2),
        samples=rounds,
        spread_us={
            "time" if name == "sparse" else name: taken.spread_us()
            for name, taken in samples.items()
        },
    )
