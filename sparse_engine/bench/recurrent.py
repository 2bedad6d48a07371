"""bench kernel --op lstm|gru|rnn: a recurrent network over whole sequences, against dense torch.

Both run the same random weights, with inputs as wide as the network, in the same dtype: int8
against torch's dynamic quantisation. Times are of a call, all layers and steps, taken in turn. The
roof is the longer of two times: reading the hidden weights at every step from whichever memory they
fit in, and the multiply-adds of all steps. With `--steps 1` a call is a single step with the state
of the last one, as online inference runs it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine import _core
from sparse_engine.bench.accuracy import relative_error
from sparse_engine.bench.grid import Grid, sparsity_of
from sparse_engine.bench.layer import Run
from sparse_engine.bench.matrices import check_size
from sparse_engine.bench.patterns import activation_dtype, random_weight
from sparse_engine.bench.rows import NetworkRow, measured_fields, microseconds
from sparse_engine.bench.timing import CallSampler, samples_in_turn
from sparse_engine.config import DTYPES, SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.nn.recurrent.base import SparseRNNBase
from sparse_engine.nn.recurrent.networks import NETWORKS

OPS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass(frozen=True, kw_only=True)
class NetworkGrid(Grid):
    """Recurrent networks of n units on m sequences.

    Attributes:
        op: "lstm", "gru" or "rnn".
        layers: Layers of the network.
        steps: Steps of a sequence.
    """

    op: str = "lstm"
    n: tuple[int, ...] = (1024,)
    layers: int = 2
    steps: int = 64

    def check(self) -> None:
        """Raise UsageError for an unknown op, other peers than torch and large sizes."""
        if self.op not in OPS:
            raise UsageError(f"--op {self.op!r}: use linear, conv1d, {', '.join(OPS)}")
        self.check_torch_only()
        for n in self.n:
            check_size(4 * n, n, "a network's weight")
            check_size(self.steps * max(self.m), n, "sequences")

    def cases(self) -> list[tuple[str, int, str, float]]:
        """dtype, units, format and sparsity of each network, each once."""
        axes = product(self.dtype, self.n, self.format, self.sparsity)
        return list(dict.fromkeys((*axis[:3], sparsity_of(axis[2], axis[3])) for axis in axes))

    def points(self) -> Iterator[tuple[Network, int]]:
        """Each network with each number of sequences."""
        for dtype, n, spec, sparsity in self.cases():
            dense = random_network(self.op, n, self.layers, sparsity, spec)
            sparse = NETWORKS[type(dense)].from_dense(dense, SparseConfig(spec, dtype))
            network = Network(self.op, dense, sparse, spec, dtype, sparsity, self.steps)
            yield from ((network, m) for m in self.tokens())

    def __len__(self) -> int:
        return len(self.cases()) * len(self.tokens())


def random_network(op: str, n: int, layers: int, sparsity: float, spec: str) -> Any:
    """torch's network of n units on n inputs, with `sparsity` zeros in the format's pattern.

    Weights are as large as trained ones, so that the state neither vanishes nor explodes.
    """
    network = OPS[op](n, n, layers).eval().requires_grad_(False)
    gates = network.weight_hh_l0.shape[0] // n
    for name, parameter in network.named_parameters():
        if name.startswith("weight"):
            weight = random_weight(gates * n, n, sparsity, spec)
            parameter.copy_(weight * (n * (1 - sparsity)) ** -0.5)
    return network


@dataclass(frozen=True)
class Network:
    """torch's network and the sparse one of the same weights, on sequences of `steps` steps."""

    op: str
    dense: nn.RNNBase
    sparse: SparseRNNBase
    label: str
    dtype: str
    sparsity: float
    steps: int

    @property
    def name(self) -> str:
        """What a progress bar shows."""
        return f"{self.op} {self.dense.hidden_size} {self.label} {self.sparsity:.0%} {self.dtype}"

    @property
    def key(self) -> Hashable:
        """Equal for networks of the same weights and packing."""
        sizes = self.dense.hidden_size, self.dense.num_layers
        return self.op, self.dtype, sizes, self.label, self.sparsity, self.steps

    def _linears(self, prefix: str = "") -> list[Any]:
        return [c for name, c in self.sparse.named_children() if name.startswith(prefix)]

    def kernels(self, m: int) -> tuple[str, ...]:
        """Names of the kernels for few and for many tokens."""
        names = {layer.kernel(tokens) for layer in self._linears() for tokens in (1, 128)}
        return tuple(sorted(names))

    @torch.inference_mode()
    def measure(self, m: int, run: Run) -> NetworkRow:
        """This network on m sequences in turn with torch's."""
        n = self.dense.hidden_size
        x = torch.randn(self.steps, m, n, generator=torch.Generator().manual_seed(1))
        x = x.to(activation_dtype(self.dtype))
        if self.steps == 1:
            calls = {"time": CallSampler(step_call(self.sparse, x[0]))}
            calls["native"] = CallSampler(native_step_call(self.sparse, x[0]))
        else:
            calls = {"time": CallSampler(lambda: self.sparse(x))}
        dense, reason = dense_call(self.dense, x, self.dtype)
        if dense is not None:
            calls["dense_time"] = CallSampler(dense)
        samples = samples_in_turn(calls, run.rounds)
        hidden = [layer.packed for layer in self._linears("hh")]
        packed = [*hidden, *(layer.packed for layer in self._linears("ih"))]
        weights = [p for name, p in self.dense.named_parameters() if name.startswith("weight")]
        nonzeros, tokens = sum(int(p.to_dense().count_nonzero()) for p in packed), m * self.steps
        read = sum(p.nbytes for p in hidden)
        bandwidth = _core.read_gbytes_per_second(max(4096, read // len(hidden)))
        seconds = samples["time"].median
        return NetworkRow(
            op=self.op,
            n=n,
            layers=self.dense.num_layers,
            steps=self.steps,
            m=m,
            format=self.label,
            step_us=microseconds(seconds / self.steps / self.dense.num_layers),
            native_us=microseconds(samples["native"].median) if "native" in samples else None,
            kernel=self._linears("hh")[0].kernel(1),
            refused={"torch": reason} if reason else {},
            **measured_fields(
                samples,
                None if dense is None else "dense_time",
                dtype=self.dtype,
                nonzeros=nonzeros,
                elements=sum(weight.numel() for weight in weights),
                tokens=tokens,
                weight_bytes=sum(p.nbytes for p in packed),
                roof_seconds=1e-9
                * max(
                    self.steps * read / bandwidth, 2.0 * nonzeros * tokens / run.peaks[self.dtype]
                ),
                error=self._error(x),
            ),
        )

    def _error(self, x: Tensor) -> float:
        """Error of the first sequence against float64."""
        exact: Any = self.sparse.to_dense(torch.float32).double()
        return relative_error(self.sparse(x)[0][:, :1], exact(x[:, :1].double())[0])


def step_call(sparse: SparseRNNBase, x: Tensor) -> Callable[[], object]:
    """A single step on x [batch, in], from the state after a first one."""
    _, state = sparse.step(x)
    return lambda: sparse.step(x, state)


def native_step_call(sparse: SparseRNNBase, x: Tensor) -> Callable[[], object]:
    """The same step in the native library alone, on arrays that are there already."""
    y, state = sparse.step(x.float())
    states = [t.numpy() for t in (state if isinstance(state, tuple) else (state,))]
    native, rows, out = sparse.native(len(x), len(x)), x.float().numpy(), y.numpy()
    return lambda: native.run(rows, [len(rows)], out, states, states)


def dense_call(
    network: nn.RNNBase, x: Tensor, dtype: str
) -> tuple[Callable[[], object] | None, str]:
    """torch's network in `dtype` on x, or None and the reason why there is none."""
    if dtype == "int8" and isinstance(network, nn.RNN):
        return None, "has no dynamic quantisation of nn.RNN"
    if dtype != "int8":
        return _with_state(copy.deepcopy(network).to(DTYPES[dtype]), x), ""
    with warnings.catch_warnings():  # deprecated, with no successor in torch itself
        warnings.simplefilter("ignore")
        # Inside a module: a network that is the root would come back as it is, in float32.
        quantized = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(copy.deepcopy(network)), {type(network)}, dtype=torch.qint8
        )
    return _with_state(quantized[0], x), ""


def _with_state(dense: Any, x: Tensor) -> Callable[[], object]:
    """A call over sequences starts from zeros; a single step starts from the state of the last."""
    if len(x) > 1:
        return lambda: dense(x)
    _, state = dense(x)
    return lambda: dense(x, state)
