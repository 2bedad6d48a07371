"""Recurrent networks on a GPU: a kernel a step, and whole sequences as one CUDA graph.

The inputs' products of all steps are one large product. Where the hidden weight lies in blocks of 16 rows,
which are a gate of 16 units, a step is one kernel (`kernels.recurrent_step`); in any other format it is a
product and torch's cell. `step_kernel` says which. h is kept in the dtype of float weights, c in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.backends.cuda_timer import capture
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.recurrent.weights import BLOCK, in_order, same
from sparse_engine.ops import reference, run_linear
from sparse_engine.packings.cuda.bsr import PackedBSR

if TYPE_CHECKING:
    from sparse_engine.nn.recurrent.base import SparseRNNBase

# Graphs of as many shapes are kept.
MAX_GRAPHS = 8
# More sequences than kernels for few tokens take multiply a weight that is expanded once a sequence.
FEW = 16


def fused(hidden: SparseLinear) -> bool:
    """Whether the steps of a network with this hidden weight are one kernel each."""
    packed = hidden.packed
    return isinstance(packed, PackedBSR) and packed.rows == BLOCK and packed.dtype != torch.int8


def step_kernel(hidden: SparseLinear) -> str:
    """What a step runs."""
    return "recurrent_step_kernel" if fused(hidden) else f"{hidden.kernel(1)}, torch's cell"


def run(
    network: SparseRNNBase, x: Tensor, sizes: list[int], state: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """y [tokens, directions x out] and the last h (and c), each [states, sequences, ..].

    x: [tokens, in], the steps one after another, sizes[t] rows for step t, never more than the step before.
    """
    if not x.is_cuda or torch.cuda.is_current_stream_capturing():
        return _layers(network, x, sizes, state)
    return _replayed(network, x, sizes, state)


@dataclass
class _Graph:
    """A captured sequence: what it reads and writes, and the weights that it was captured with."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    state: list[Tensor | None]
    result: tuple[Tensor, list[Tensor]]
    weights: tuple[Tensor, ...]


def _replayed(
    network: SparseRNNBase, x: Tensor, sizes: list[int], state: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """The same by a graph, which is captured when a shape comes for the second time."""
    graphs: dict[Any, _Graph | None] = network.__dict__.setdefault("_graphs", {})
    weights = tuple(network.buffers())
    given = tuple(None if t is None else t.dtype for t in state)
    key = (x.dtype, x.device, tuple(sizes), given)
    seen = key in graphs
    found = graphs.pop(key, None)
    if found is not None and not same(found.weights, weights):
        found = None
    if not seen:
        while len(graphs) >= MAX_GRAPHS:  # the one that was not used for longest goes
            graphs.pop(next(iter(graphs)))
        graphs[key] = None
        return _layers(network, x, sizes, state)
    # Ordinary tensors, which may be written to in and out of inference mode.
    with torch.inference_mode(False), torch.no_grad():
        if found is None:
            found = _captured(network, x, sizes, state, weights)
        graphs[key] = found
        found.x.copy_(x)
        for mine, theirs in zip(found.state, state, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        found.graph.replay()
        y, last = found.result
        return y.clone(), [t.clone() for t in last]


def _captured(
    network: SparseRNNBase,
    x: Tensor,
    sizes: list[int],
    state: tuple[Tensor | None, Tensor | None],
    weights: tuple[Tensor, ...],
) -> _Graph:
    inputs = x.clone()
    h, c = (None if t is None else t.clone() for t in state)
    result: list[Any] = []

    def call() -> None:
        result[:] = _layers(network, inputs, sizes, (h, c))

    graph = capture(call, x.device)
    return _Graph(graph, inputs, [h, c], (result[0], result[1]), weights)


def _layers(
    network: SparseRNNBase, x: Tensor, sizes: list[int], state: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """Layer after layer, direction after direction."""
    ends = ("", "_reverse")[: network.directions]
    hidden: Any = network.get_submodule("hh_l0")
    values = hidden.values
    dtype = x.dtype if values.dtype == torch.int8 else values.dtype
    x = x.to(dtype)
    out = network.out_size
    states = network.num_layers * network.directions
    batch = sizes[0]
    h = _states(state[0], x, (states, batch, out), dtype)
    c = _states(state[1], x, (states, batch, network.hidden_size), torch.float32)
    for layer in range(network.num_layers):
        y = x.new_zeros(len(x), network.directions * out)
        for d, end in enumerate(ends):
            i = layer * network.directions + d
            part = y[:, d * out : (d + 1) * out]
            _direction(network, f"l{layer}{end}", x, sizes, h[i], c[i], part, backward=d == 1)
        x = y
    return x, [h, c] if network.mode == "LSTM" else [h]


def _states(given: Tensor | None, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A copy to write to."""
    if given is None:
        return x.new_zeros(shape, dtype=dtype)
    return given.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _direction(
    network: SparseRNNBase,
    which: str,
    x: Tensor,
    sizes: list[int],
    h: Tensor,
    c: Tensor,
    y: Tensor,
    backward: bool,
) -> None:
    """One layer in one direction: writes y [tokens, out], and the last h and c over the first."""
    inputs: Any = network.get_submodule(f"ih_{which}")
    hidden: Any = network.get_submodule(f"hh_{which}")
    projection = network.get_submodule(f"hr_{which}") if network.proj_size else None
    bias, hidden_bias = network.step_biases(which)
    gates = run_linear(inputs.packed, x, bias, "none", None)  # [tokens, rows]
    first, second = h.contiguous().clone(), h.contiguous().clone()
    dense = None
    if not fused(hidden) and not isinstance(hidden.packed, PackedBSR) and sizes[0] > FEW:
        from sparse_engine.backends.cuda_ops import expand

        dense = expand(hidden.packed, x.dtype)  # once, not at every step
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    steps = range(len(sizes))
    for t in reversed(steps) if backward else steps:
        n, rows = sizes[t], slice(starts[t], starts[t + 1])
        _step(
            network, hidden, dense, projection, gates[rows], hidden_bias,
            first, c, second, y[rows], n,
        )  # fmt: skip
        first, second = second, first
        after = 0 if t + 1 == len(sizes) else sizes[t + 1]
        if not backward:  # sequences that end here
            h[after:n] = first[after:n]
    if backward:
        h.copy_(first)


def _step(
    network: SparseRNNBase,
    hidden: Any,
    dense: Tensor | None,
    projection: Any,
    gates: Tensor,
    bias: Tensor | None,
    h: Tensor,
    c: Tensor,
    h_next: Tensor,
    y: Tensor,
    n: int,
) -> None:
    """A step of the first n sequences: writes h_next, y, and c over."""
    target = h_next[:n]
    if projection is not None:
        target = h.new_zeros(n, network.hidden_size)
    if fused(hidden):
        from sparse_engine.kernels import recurrent_step

        packed = hidden.packed
        cell = c[:n] if network.mode == "LSTM" else None
        kept = y if projection is None else target
        recurrent_step(
            network.mode, gates, h[:n], packed.values, packed.indices, packed.pointers,
            bias, cell, target, kept,
        )  # fmt: skip
    else:
        if dense is None:
            products = run_linear(hidden.packed, h[:n], bias, "none", None)
        else:
            products = F.linear(h[:n], dense, None if bias is None else bias.to(h.dtype))
        left, right = (
            in_order(t.T.float(), network.gates, network.hidden_size).T for t in (gates, products)
        )
        result = reference.recurrent_step(network.mode, left, right, (h[:n].float(), c[:n]))
        target.copy_(result[0])
        if len(result) > 1:
            c[:n] = result[1]
        if projection is None:
            y.copy_(result[0])
    if projection is not None:
        h_next[:n] = run_linear(projection.packed, target, None, "none", None)
        y.copy_(h_next[:n])
