"""bench kernel --op lstm|gru|rnn: a recurrent network over whole sequences, against dense torch.

Both run the same random weights, inputs as wide as the network, in the same dtype: int8 against
torch's dynamic quantisation. Times are of a call, all layers and steps, taken in turn. The roof is
that of a step's hidden weights, read from wherever they fit, or of its multiply-adds, whichever is
longer, and of the input product, which all steps share. With --steps 1 it is a single step, as online
use has it: `step` with the state of the last one, against torch's network with its own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine import _core
from sparse_engine.bench.grid import sparsity_of
from sparse_engine.bench.kernel import carrier, forced_isa
from sparse_engine.bench.machine import BusyMeter
from sparse_engine.bench.matrices import check_size
from sparse_engine.bench.patterns import random_weight
from sparse_engine.bench.timing import CallSampler, samples_in_turn
from sparse_engine.config import DTYPES, SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.formats import FormatSpec
from sparse_engine.nn.recurrent.base import SparseRNNBase
from sparse_engine.nn.recurrent.networks import NETWORKS

OPS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass(frozen=True)
class NetworkRow:
    """One measured point: n units, m sequences. Times are medians of a call in microseconds."""

    op: str
    n: int
    layers: int
    steps: int
    m: int
    sparsity: float
    format: str
    dtype: str
    isa: str
    threads: int
    time_us: float
    step_us: float
    """Of a step of one layer."""
    dense_time_us: float | None
    speedup: float | None
    roof_fraction: float
    weight_bytes: int
    dense_bytes: int
    max_rel_err: float
    """Against float64 on the stored weights, over the largest output."""
    kernel: str
    """Of the hidden weights, for one sequence."""
    refused: dict[str, str]
    native_us: float | None = None
    """Of a single step what the library takes; the rest of its time is Python's."""
    samples: int = 0
    """How many the medians are of."""
    spread_us: dict[str, tuple[float, float]] = field(default_factory=dict)
    """10th and 90th percentile of the samples of "time" and "dense_time", microseconds."""


@dataclass(frozen=True)
class NetworkGrid:
    """What to measure: every combination."""

    op: str = "lstm"
    n: tuple[int, ...] = (1024,)
    m: tuple[int, ...] = (1, 8, 32)
    sparsity: tuple[float, ...] = (0.9,)
    format: tuple[str, ...] = ("csr", "bsr:16x1")
    dtype: tuple[str, ...] = ("float32",)
    layers: int = 2
    steps: int = 64
    rounds: int = 9

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise UsageError(f"--op {self.op!r}: use linear, conv1d, {', '.join(OPS)}")
        for name in ("n", "m"):
            if any(size < 1 for size in getattr(self, name)):
                raise UsageError(f"-{name} must be 1 or more, got {getattr(self, name)}")
        if self.layers < 1 or self.steps < 1:
            raise UsageError("--layers and --steps must be 1 or more")
        if any(not 0 <= s < 1 for s in self.sparsity):
            raise UsageError(f"sparsity is a fraction of zeros in [0, 1), got {self.sparsity}")
        for spec in self.format:
            if spec != "auto":
                FormatSpec.parse(spec)
        for dtype in self.dtype:
            if dtype not in DTYPES:
                raise UsageError(f"dtype {dtype!r}: use {' or '.join(DTYPES)}")
        for n in self.n:
            check_size(4 * n, n, "a network's weight")
            check_size(self.steps * max(self.m), n, "sequences")

    def networks(self) -> list[tuple[str, int, str, float]]:
        """dtype, units, format and sparsity of each network, each once."""
        axes = product(self.dtype, self.n, self.format, self.sparsity)
        return list(dict.fromkeys((d, n, spec, sparsity_of(spec, s)) for d, n, spec, s in axes))

    def sequences(self) -> tuple[int, ...]:
        """Numbers of sequences, each once."""
        return tuple(dict.fromkeys(self.m))

    def __len__(self) -> int:
        return len(self.networks()) * len(self.sequences())


def bench_recurrent(
    grid: NetworkGrid,
    isa: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    known: set[tuple[Any, ...]] | None = None,
    busy: BusyMeter | None = None,
) -> Iterator[NetworkRow]:
    """Measure every point of `grid`, on `isa` if given; raises UsageError for one not at hand.

    known: points and kernels measured before, which are left out and added to; busy: looks at the
    machine before the first point and before each.
    """
    known = set() if known is None else known
    busy = busy or BusyMeter()
    with forced_isa(isa):
        busy.start()
        peaks = {dtype: _core.peak_gflops(dtype) for dtype in grid.dtype}
        for i, (dtype, n, spec, sparsity) in enumerate(grid.networks()):
            network = random_network(grid.op, n, grid.layers, sparsity, spec)
            sparse = NETWORKS[type(network)].from_dense(network, SparseConfig(spec, dtype))
            for j, m in enumerate(grid.sequences()):
                if progress is not None:
                    name = f"{grid.op} {n} {spec} {sparsity:.0%} {dtype} m={m}"
                    progress(i * len(grid.sequences()) + j, len(grid), name)
                layers: Any = [layer for _, layer in sparse.named_children()]
                kernels = {layer.kernel(tokens) for layer in layers for tokens in (1, 128)}
                key = dtype, n, spec, sparsity, m, tuple(sorted(kernels))
                if key in known:
                    continue
                known.add(key)
                busy.look()
                yield measure(grid, network, sparse, spec, dtype, m, peaks[dtype])


def random_network(op: str, n: int, layers: int, sparsity: float, spec: str) -> Any:
    """torch's network of `n` units on as many inputs, with `sparsity` zeros in the format's pattern,
    and weights as large as trained ones: the state neither dies out nor explodes.
    """
    network = OPS[op](n, n, layers).eval().requires_grad_(False)
    gates = network.weight_hh_l0.shape[0] // n
    for name, parameter in network.named_parameters():
        if name.startswith("weight"):
            weight = random_weight(gates * n, n, sparsity, spec)
            parameter.copy_(weight * (n * (1 - sparsity)) ** -0.5)
    return network


@torch.inference_mode()
def measure(
    grid: NetworkGrid,
    network: nn.RNNBase,
    sparse: SparseRNNBase,
    spec: str,
    dtype: str,
    m: int,
    peak: float,
) -> NetworkRow:
    """One point."""
    n = network.hidden_size
    x = torch.randn(grid.steps, m, n, generator=torch.Generator().manual_seed(1))
    x = x.to(carrier(dtype))
    dense, why = dense_call(network, x, dtype)
    calls = {"sparse": CallSampler(lambda: sparse(x))}
    if grid.steps == 1:
        calls = {"sparse": CallSampler(step_call(sparse, x[0]))}
        calls["native"] = CallSampler(native_step_call(sparse, x[0]))
    if dense is not None:
        calls["dense"] = CallSampler(dense)
    samples = samples_in_turn(calls, grid.rounds)
    times = {name: taken.median for name, taken in samples.items()}
    hidden = [c for name, c in sparse.named_children() if name.startswith("hh")]
    inputs = [c for name, c in sparse.named_children() if name.startswith("ih")]
    packed: list[Any] = [layer.packed for layer in (*hidden, *inputs)]
    nnz = sum(_nnz(p) for p in packed)
    flops = 2.0 * nnz * m * grid.steps
    read = sum(p.nbytes for p in packed[: len(hidden)])
    bandwidth = _core.read_gbytes_per_second(max(4096, read // len(hidden)))
    roof = max(grid.steps * read / bandwidth, flops / peak) * 1e-9
    speedup = times["dense"] / times["sparse"] if dense is not None else None
    weights = [p for name, p in network.named_parameters() if name.startswith("weight")]
    return NetworkRow(
        op=grid.op,
        n=n,
        layers=grid.layers,
        steps=grid.steps,
        m=m,
        sparsity=round(1 - nnz / sum(w.numel() for w in weights), 4),
        format=spec,
        dtype=dtype,
        isa=_core.active_isa(),
        threads=torch.get_num_threads(),
        time_us=round(times["sparse"] * 1e6, 1),
        step_us=round(times["sparse"] * 1e6 / grid.steps / grid.layers, 2),
        dense_time_us=None if dense is None else round(times["dense"] * 1e6, 1),
        speedup=None if speedup is None else round(speedup, 2),
        roof_fraction=round(roof / times["sparse"], 3),
        weight_bytes=sum(p.nbytes for p in packed),
        dense_bytes=sum(w.numel() for w in weights) * DTYPES[dtype].itemsize,
        max_rel_err=float(f"{_error(sparse, x):.2e}"),
        kernel=hidden[0].kernel(1),  # type: ignore[operator]
        native_us=round(times["native"] * 1e6, 2) if "native" in times else None,
        refused={} if dense is not None else {"torch": why},
        samples=grid.rounds,
        spread_us={
            "time" if name == "sparse" else "dense_time": taken.spread_us()
            for name, taken in samples.items()
            if name != "native"
        },
    )


def step_call(sparse: SparseRNNBase, x: Tensor) -> Callable[[], object]:
    """A single step on x [batch, in], from wherever the last one ended."""
    _, state = sparse.step(x)
    return lambda: sparse.step(x, state)


def native_step_call(sparse: SparseRNNBase, x: Tensor) -> Callable[[], object]:
    """The same by the library alone, on arrays that are there already."""
    y, state = sparse.step(x.float())
    states = [t.numpy() for t in (state if isinstance(state, tuple) else (state,))]
    h, c = states[0], states[1] if len(states) > 1 else None
    native, rows, out = sparse.native(len(x), len(x)), x.float().numpy(), y.numpy()
    return lambda: native.run(rows, [len(rows)], out, h, c, h, c)


def dense_call(
    network: nn.RNNBase, x: Tensor, dtype: str
) -> tuple[Callable[[], object] | None, str]:
    """torch's network in `dtype` on x, or why there is none."""
    if dtype == "int8" and isinstance(network, nn.RNN):
        return None, "has no dynamic quantisation of nn.RNN"
    if dtype == "int8":
        with warnings.catch_warnings():  # deprecated, with no successor in torch itself
            warnings.simplefilter("ignore")
            # Inside a module: a network that is the root would come back as it is, in float32.
            quantized = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(copy.deepcopy(network)), {type(network)}, dtype=torch.qint8
            )
        return _going_on(quantized[0], x), ""
    dense = copy.deepcopy(network).to(DTYPES[dtype])
    return _going_on(dense, x), ""


def _going_on(dense: Any, x: Tensor) -> Callable[[], object]:
    """Sequences from zeros; a single step from the state that is there."""
    if len(x) > 1:
        return lambda: dense(x)
    _, state = dense(x)
    return lambda: dense(x, state)


def _nnz(packed: Any) -> int:
    return int(packed.to_dense().count_nonzero())


def _error(sparse: SparseRNNBase, x: Tensor) -> float:
    """Of the first sequence."""
    exact = sparse.to_dense(torch.float32).double()
    truth = exact(x[:, :1].double())[0]
    y = sparse(x)[0][:, :1]
    return float((y.double() - truth).abs().max() / truth.abs().max())
