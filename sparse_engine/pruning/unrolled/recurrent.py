"""torch.nn.LSTM, GRU and RNN as linear layers ih_l0, hh_l0, ... that run step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparse_engine.ops.reference import recurrent_step
from sparse_engine.pruning.unrolled.base import Kind, ParameterViews

TYPES = (nn.LSTM, nn.GRU, nn.RNN)


def layers(network: Any, views: ParameterViews) -> dict[str, nn.Module]:
    """The layers ih_l0, hh_l0, hr_l0_reverse, ..., which hold the network's own parameters."""
    return {
        name: views.linear(
            getattr(network, f"weight_{name}"), getattr(network, f"bias_{name}", None)
        )
        for parameter in network._flat_weights_names
        if parameter.startswith("weight_")
        for name in [parameter.removeprefix("weight_")]
    }


def forward(network: Any, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
    """The forward pass of the network, with its arguments and results.

    Args:
        network: the unrolled module.
        input: a packed sequence, or [length, batch, features], batch first or without batch.
        hx: the state h, or (h, c) of an LSTM, [layers x directions, batch, units] each.

    Returns:
        The outputs, in the layout of the input, and the last state.
    """
    if isinstance(input, PackedSequence):
        order = input.sorted_indices
        y, last = _run(network, input.data, input.batch_sizes.tolist(), _select(hx, order))
        packed = PackedSequence(y, input.batch_sizes, order, input.unsorted_indices)
        return packed, _as_state(network, _select(last, input.unsorted_indices))
    batched = input.dim() == 3
    x = input if batched else input.unsqueeze(1)
    if batched and network.batch_first:
        x = x.transpose(0, 1)
    if hx is not None and not batched:
        hx = tuple(t.unsqueeze(1) for t in (hx if isinstance(hx, tuple) else (hx,)))
    y, last = _run(network, x.flatten(0, 1), [x.shape[1]] * len(x), hx)
    y = y.view(len(x), x.shape[1], -1)
    if not batched:
        return y.squeeze(1), _as_state(network, tuple(t.squeeze(1) for t in last))
    return y.transpose(0, 1) if network.batch_first else y, _as_state(network, last)


def _as_state(network: Any, last: tuple[Tensor, ...]) -> Any:
    return last if isinstance(network, nn.LSTM) else last[0]


def _run(network: Any, x: Tensor, sizes: list[int], hx: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run all layers.

    Args:
        network: the unrolled module.
        x: [tokens, features], time step by time step.
        sizes: the number of sequences in each time step.
        hx: the first state, or None.

    Returns:
        The outputs [tokens, units x directions], and the last states.
    """
    begin = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
    suffixes = ("", "_reverse")[: 1 + network.bidirectional]
    last: list[tuple[Tensor, ...]] = []
    for layer in range(network.num_layers):
        outputs = []
        for suffix in suffixes:
            state = tuple(t[len(last)] for t in begin)
            y, last_state = _run_direction(network, f"l{layer}{suffix}", x, sizes, state)
            outputs.append(y)
            last.append(last_state)
        x = torch.cat(outputs, -1)
        if network.training and layer + 1 < network.num_layers:
            x = nn.functional.dropout(x, network.dropout)
    return x, tuple(torch.stack(states) for states in zip(*last, strict=True))


def _run_direction(
    network: Any, name: str, x: Tensor, sizes: list[int], state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one direction of one layer, whose name is such as l0_reverse, time step by time step."""
    ih, hh = (network.get_submodule(f"{part}_{name}") for part in ("ih", "hh"))
    hr = network._modules.get(f"hr_{name}")
    inputs = ih(x).split(sizes)
    if not state:
        out = network.proj_size or network.hidden_size
        widths = (out, network.hidden_size) if network.mode == "LSTM" else (out,)
        state = tuple(x.new_zeros(sizes[0], width) for width in widths)
    outputs: list[Tensor | None] = [None] * len(sizes)
    order = range(len(sizes))
    for t in reversed(order) if name.endswith("reverse") else order:
        active = tuple(s[: sizes[t]] for s in state)
        stepped = recurrent_step(network.mode, inputs[t], hh(active[0]), active)
        if hr is not None:
            stepped = (hr(stepped[0]), *stepped[1:])
        outputs[t] = stepped[0]
        state = tuple(torch.cat([a, s[sizes[t] :]]) for a, s in zip(stepped, state, strict=True))
    return torch.cat([y for y in outputs if y is not None]), state


def _select(state: Any, order: Tensor | None) -> Any:
    if state is None or order is None:
        return state
    states = state if isinstance(state, tuple) else (state,)
    return tuple(t.index_select(1, order) for t in states)


NETWORK = Kind(
    matches=lambda module: type(module) in TYPES,
    base=TYPES,
    parameters=lambda module: list(module._flat_weights_names),
    layers=layers,
    forward=forward,
)
