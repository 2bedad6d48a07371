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
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.bench.peers import find_peers
from sparse_engine.bench.rivals import Rivals, max_error
from sparse_engine.bench.timing import CallSampler, Sampler, samples_in_turn
from sparse_engine.config import DTYPES
from sparse_engine.errors import UsageError
from sparse_engine.formats import BSR, NM, Format, parse_format
from sparse_engine.ops import linear_kernel, run_linear, weight_handle
from sparse_engine.packings import pack


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


@dataclass(frozen=True)
class KernelGrid:
    """What to measure: every combination. n outputs, k inputs, m tokens."""

    n: tuple[int, ...] = (3072,)
    k: tuple[int, ...] = (768,)
    m: tuple[int, ...] = (1, 16, 128)
    sparsity: tuple[float, ...] = (0.5, 0.8, 0.9)
    format: tuple[str, ...] = ("csr", "bsr:4x1")
    dtype: tuple[str, ...] = ("float32",)
    rounds: int = 9
    against: tuple[str, ...] = ("torch",)

    def __post_init__(self) -> None:
        for name in ("n", "k", "m"):
            if any(size < 1 for size in getattr(self, name)):
                raise UsageError(f"-{name} must be 1 or more, got {getattr(self, name)}")
        if any(not 0 <= s < 1 for s in self.sparsity):
            raise UsageError(f"sparsity is a fraction of zeros in [0, 1), got {self.sparsity}")
        for spec in self.format:
            parse_format(spec)
        for dtype in self.dtype:
            if dtype not in DTYPES:
                raise UsageError(f"dtype {dtype!r}: use {' or '.join(DTYPES)}")
            if not any(p.dense and not p.problem(dtype) for p in find_peers(self.against)):
                asked = ", ".join(self.against) or "nobody"
                raise UsageError(f"no dense {dtype} among {asked}: ask for torch as well")

    def __len__(self) -> int:
        axes = (self.n, self.k, self.m, self.sparsity, self.format, self.dtype)
        return len(list(product(*axes)))


def random_weight(n: int, k: int, sparsity: float, spec: str) -> Tensor:
    """A weight [n, k] with `sparsity` zeros, in whole blocks or groups where the format has them."""
    generator = torch.Generator().manual_seed(0)
    format_class, params = parse_format(spec)
    rows, cols = (params["rows"], params["cols"]) if format_class is BSR else (1, 1)
    weight = torch.randn(n, k, generator=generator)
    score = torch.rand(-(-n // rows), -(-k // cols), generator=generator)
    if format_class is NM:
        groups = F.pad(score, (0, -k % params["of"]), value=-1.0).view(n, -1, params["of"])
        keep = torch.zeros_like(groups, dtype=torch.bool)
        keep.scatter_(2, groups.topk(params["keep"], dim=2).indices, True)
        return weight * keep.view(n, -1)[:, :k]
    zeros = round(sparsity * score.numel())
    cut = score.flatten().kthvalue(zeros).values if zeros else -1.0
    keep = (score > cut).repeat_interleave(rows, 0).repeat_interleave(cols, 1)[:n, :k]
    return weight * keep


def bench_kernel(
    grid: KernelGrid,
    isa: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[KernelRow]:
    """Measure every point of `grid`, on `isa` if given; raises UsageError for one not at hand."""
    with forced_isa(isa):
        peaks = {dtype: _core.peak_gflops(dtype) for dtype in grid.dtype}
        layers = product(grid.dtype, grid.n, grid.k, grid.format, grid.sparsity)
        with Rivals(grid.against) as rivals:
            for i, (dtype, n, k, spec, sparsity) in enumerate(layers):
                name = f"{n}x{k} {spec} {sparsity:.0%} {dtype}"
                layer = Layer.of(random_weight(n, k, sparsity, spec), spec, dtype)
                for j, m in enumerate(grid.m):
                    if progress is not None:
                        progress(i * len(grid.m) + j, len(grid), f"{name} m={m}")
                    yield measure(layer, m, rivals, peaks[dtype], grid.rounds)


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
    """One sparse layer, packed once, to be measured with any number of tokens.

    weight: what dense peers multiply by, float32; stored: what the packing holds, int8 dequantised.
    """

    spec: str
    dtype: str
    weight: Tensor
    stored: Tensor
    packed: Format

    @classmethod
    def of(cls, weight: Tensor, spec: str, dtype: str) -> Layer:
        """Store a float32 weight [out, in] as `spec` says, and pack it."""
        format_class, params = parse_format(spec)
        weight = weight.to(carrier(dtype))
        packed = pack(format_class.from_dense(weight, **params), "cpu", dtype)
        stored = packed.to_dense() if dtype == "int8" else weight
        return cls(spec, dtype, weight.float(), stored, packed)

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of the format's blocks."""
        _, params = parse_format(self.spec)
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
    packed, (n, k) = layer.packed, layer.packed.shape
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
    times = samples_in_turn(samplers | dict(peers), rounds)
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
    )


def conditions() -> dict[str, Any]:
    """What a reader must know to judge the figures."""
    return {
        "cpu": _core.cpu_name(),
        "isa": _core.active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
