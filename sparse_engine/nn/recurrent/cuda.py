"""CudaRunner: runs recurrent networks on a GPU, whole sequences as one CUDA graph.

The input projection of all time steps is one product. A hidden weight in blocks of 16 rows, each of
which is a gate of 16 units, makes a step one kernel (`kernels.recurrent_step`). In any other format
a step is a product followed by torch's cell. h has the dtype of float weights, c is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.backends import backend_of_packing
from sparse_engine.backends.cuda_timer import can_capture, capture
from sparse_engine.modules.watch import same
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.recurrent.arguments import States
from sparse_engine.nn.recurrent.rows import UNIT_TILE, deinterleave_gates
from sparse_engine.nn.recurrent.weights import DirectionLayers, RecurrentWeights
from sparse_engine.ops import reference, run_linear

MAX_GRAPHS = 8
"""Graphs that a network keeps, one for each shape of its input."""


def has_step_kernel(hidden: SparseLinear) -> bool:
    """Whether the steps of a network with this hidden weight are one kernel each."""
    packed = hidden.packed
    return backend_of_packing(packed).has_step_kernel(packed, UNIT_TILE)


def step_kernel(hidden: SparseLinear) -> str:
    """The kernels of a step, by name."""
    if has_step_kernel(hidden):
        return "recurrent_step_kernel"
    return f"{hidden.kernel(1)}, torch's cell"


@dataclass
class _Graph:
    """A captured call: the memory that it reads and writes, and the weights that it reads."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    states: States
    result: tuple[Tensor, States]
    weights: tuple[Tensor, ...]


class CudaRunner:
    """The CUDA graphs of one module, least recently used first."""

    def __init__(self) -> None:
        self.graphs: dict[Any, _Graph | None] = {}
        """By dtype, device, batch sizes and dtypes of the states; None for a shape seen once."""

    def run(
        self,
        network: RecurrentWeights,
        x: Tensor,
        batch_sizes: list[int],
        states: States,
        in_place: bool,
    ) -> tuple[Tensor, States]:
        """Run a packed batch of sequences; a shape is captured when it is seen again.

        Args and results are those of `NativeRunner.run`, but in the weights' dtype (c in float32).
        The last states are never written over `states`.
        """
        if not can_capture(x):
            return _run_layers(network, x, batch_sizes, states)
        weights = tuple(network.buffers())
        key = (x.dtype, x.device, tuple(batch_sizes), tuple(t.dtype for t in states))
        seen = key in self.graphs
        graph = self.graphs.pop(key, None)
        if graph is not None and not same(graph.weights, weights):
            graph = None
        if not seen:
            while len(self.graphs) >= MAX_GRAPHS:
                self.graphs.pop(next(iter(self.graphs)))
            self.graphs[key] = None
            return _run_layers(network, x, batch_sizes, states)
        # Ordinary tensors may be written to in and out of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            if graph is None:
                graph = _capture(network, x, batch_sizes, states, weights)
            self.graphs[key] = graph
            graph.x.copy_(x)
            for captured, given in zip(graph.states, states, strict=True):
                captured.copy_(given)
            graph.graph.replay()
            y, last = graph.result
            return y.clone(), tuple(t.clone() for t in last)


def _capture(
    network: RecurrentWeights,
    x: Tensor,
    batch_sizes: list[int],
    states: States,
    weights: tuple[Tensor, ...],
) -> _Graph:
    x, states = x.clone(), tuple(t.clone() for t in states)
    result: list[Any] = []

    def call() -> None:
        result[:] = _run_layers(network, x, batch_sizes, states)

    graph = capture(call, x.device)
    return _Graph(graph, x, states, (result[0], result[1]), weights)


def _run_layers(
    network: RecurrentWeights, x: Tensor, batch_sizes: list[int], states: States
) -> tuple[Tensor, States]:
    """One layer after another, one direction after another."""
    values = network.directions_of(0)[0].hidden.values
    dtype = x.dtype if values.dtype == torch.int8 else values.dtype
    x = x.to(dtype)
    if not states:
        shape = (network.state_count, batch_sizes[0])
        states = tuple(x.new_zeros(*shape, size) for size in network.state_sizes)
    # Copies, which are overwritten with the last states.
    last = tuple(
        t.to(kept, copy=True, memory_format=torch.contiguous_format)
        for t, kept in zip(states, (dtype, torch.float32), strict=False)
    )
    for layer in range(network.num_layers):
        y = x.new_zeros(len(x), network.directions * network.out_size)
        parts = y.split(network.out_size, dim=1)
        for d, layers in enumerate(network.directions_of(layer)):
            direction = _Direction(network, layers, *layers.biases(network.mode))
            i = layer * network.directions + d
            direction.run(x, batch_sizes, [t[i] for t in last], parts[d], backward=d == 1)
        x = y
    return x, last


@dataclass
class _Direction:
    """One direction of a layer, and what its time steps share."""

    network: RecurrentWeights
    layers: DirectionLayers
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    dense: Tensor | None = None
    """The hidden weight, expanded once a call for more sequences than its kernel runs."""

    def run(
        self, x: Tensor, batch_sizes: list[int], states: list[Tensor], y: Tensor, backward: bool
    ) -> None:
        """All time steps: writes y [tokens, out_size], and the last states over `states`."""
        gates = run_linear(self.layers.input.packed, x, self.input_bias, "none", None)
        hidden: Any = self.layers.hidden.packed
        if hidden.max_tokens is not None and batch_sizes[0] > hidden.max_tokens:
            self.dense = hidden.expand(x.dtype)
        h = states[0]
        h_before, h_after = h.clone(), h.clone()
        starts = [0]
        for size in batch_sizes:
            starts.append(starts[-1] + size)
        steps = range(len(batch_sizes))
        for t in reversed(steps) if backward else steps:
            active, rows = batch_sizes[t], slice(starts[t], starts[t + 1])
            c = [state[:active] for state in states[1:]]
            self._step(gates[rows], h_before[:active], c, h_after[:active], y[rows])
            h_before, h_after = h_after, h_before
            if not backward:  # the last state of sequences that end at this step
                remaining = 0 if t + 1 == len(batch_sizes) else batch_sizes[t + 1]
                h[remaining:active] = h_before[remaining:active]
        if backward:
            h.copy_(h_before)

    def _step(self, gates: Tensor, h: Tensor, c: list[Tensor], h_after: Tensor, y: Tensor) -> None:
        """One time step of the active sequences: writes h_after and y, and over an LSTM's c.

        gates: [sequences, rows], W_ih x + b_ih; c: [c] of an LSTM, else [].
        """
        projection = self.layers.projection
        if projection is None:
            self._cell(gates, h, c, h_after, y)
            return
        m = h.new_zeros(len(h), self.network.hidden_size)
        self._cell(gates, h, c, m, m)
        h_after[:] = run_linear(projection.packed, m, None, "none", None)
        y.copy_(h_after)

    def _cell(self, gates: Tensor, h: Tensor, c: list[Tensor], out: Tensor, y: Tensor) -> None:
        """Hidden product and cell: writes the same to `out` and y, [sequences, units]."""
        network, hidden = self.network, self.layers.hidden
        if has_step_kernel(hidden):
            from sparse_engine.kernels import recurrent_step

            packed: Any = hidden.packed
            recurrent_step(
                network.mode, gates, h, packed.values, packed.indices, packed.pointers,
                self.hidden_bias, c[0] if c else None, out, y,
            )  # fmt: skip
            return
        if self.dense is None:
            products = run_linear(hidden.packed, h, self.hidden_bias, "none", None)
        else:
            bias = None if self.hidden_bias is None else self.hidden_bias.to(h.dtype)
            products = F.linear(h, self.dense, bias)
        left, right = (
            deinterleave_gates(t.T.float(), network.gates, network.hidden_size).T
            for t in (gates, products)
        )
        new = reference.recurrent_step(network.mode, left, right, (h.float(), *c))
        out.copy_(new[0])
        if y is not out:
            y.copy_(new[0])
        for state, value in zip(c, new[1:], strict=True):
            state[:] = value
