"""Recurrent networks as linear layers that run step by step, so that they are pruned as others are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparse_engine.ops.reference import recurrent_step

NETWORKS = (nn.LSTM, nn.GRU, nn.RNN)


class Unrolled(nn.Module):
    """A torch.nn network in slow motion: layers `ih_l0`, `hh_l0`, ... hold its own parameters."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = (network,)  # in a tuple, so that it is no submodule
        for layer in range(network.num_layers):
            for end in ("", "_reverse")[: 1 + network.bidirectional]:
                for part in ("ih", "hh", "hr"):
                    name = f"{part}_l{layer}{end}"
                    weight = getattr(network, f"weight_{name}", None)
                    if weight is not None:
                        linear = nn.Linear(1, 1, bias=False, device="meta")
                        linear.out_features, linear.in_features = weight.shape
                        linear.weight = weight
                        bias: Any = getattr(network, f"bias_{name}", None)
                        linear.bias = bias
                        self.add_module(name, linear)
        self.train(network.training)

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """What the network returns."""
        net: Any = self.network[0]
        if isinstance(input, PackedSequence):
            order = input.sorted_indices
            y, last = self._run(input.data, input.batch_sizes.tolist(), _picked(hx, order))
            packed = PackedSequence(
                y, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            return packed, self._given(_picked(last, input.unsorted_indices))
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and net.batch_first:
            x = x.transpose(0, 1)
        if hx is not None and not batched:
            hx = tuple(t.unsqueeze(1) for t in (hx if isinstance(hx, tuple) else (hx,)))
        y, last = self._run(x.flatten(0, 1), [x.shape[1]] * len(x), hx)
        y = y.view(len(x), x.shape[1], -1)
        if not batched:
            return y.squeeze(1), self._given(tuple(t.squeeze(1) for t in last))
        return y.transpose(0, 1) if net.batch_first else y, self._given(last)

    def _given(self, last: tuple[Tensor, ...]) -> Any:
        return last if isinstance(self.network[0], nn.LSTM) else last[0]

    def _run(self, x: Tensor, sizes: list[int], hx: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        net: Any = self.network[0]
        begin = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        ends = ("", "_reverse")[: 1 + net.bidirectional]
        last: list[tuple[Tensor, ...]] = []
        for layer in range(net.num_layers):
            outputs = []
            for end in ends:
                state = tuple(t[len(last)] for t in begin)
                y, after = self._direction(f"l{layer}{end}", x, sizes, state)
                outputs.append(y)
                last.append(after)
            x = torch.cat(outputs, -1)
            if net.training and layer + 1 < net.num_layers:
                x = nn.functional.dropout(x, net.dropout)
        return x, tuple(torch.stack(states) for states in zip(*last, strict=True))

    def _direction(
        self, which: str, x: Tensor, sizes: list[int], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        net: Any = self.network[0]
        ih, hh = (self.get_submodule(f"{part}_{which}") for part in ("ih", "hh"))
        hr = self._modules.get(f"hr_{which}")
        inputs = ih(x).split(sizes)
        if not state:
            out = getattr(net, "proj_size", 0) or net.hidden_size
            widths = (out, net.hidden_size) if net.mode == "LSTM" else (out,)
            state = tuple(x.new_zeros(sizes[0], width) for width in widths)
        outputs: list[Tensor | None] = [None] * len(sizes)
        order = range(len(sizes))
        for t in reversed(order) if which.endswith("reverse") else order:
            live = tuple(s[: sizes[t]] for s in state)
            now = recurrent_step(net.mode, inputs[t], hh(live[0]), live)
            if hr is not None:
                now = (hr(now[0]), *now[1:])
            outputs[t] = now[0]
            state = tuple(torch.cat([a, s[sizes[t] :]]) for a, s in zip(now, state, strict=True))
        return torch.cat([y for y in outputs if y is not None]), state


def _picked(state: Any, order: Tensor | None) -> Any:
    if state is None or order is None:
        return state
    states = state if isinstance(state, tuple) else (state,)
    return tuple(t.index_select(1, order) for t in states)


@contextmanager
def unrolled(model: nn.Module) -> Iterator[nn.Module]:
    """`model` with every torch.nn network in it unrolled, until the end; itself one, if it is one."""
    if type(model) in NETWORKS:
        yield Unrolled(model)
        return
    found = [(name, m) for name, m in model.named_modules() if type(m) in NETWORKS]
    made = {id(network): Unrolled(network) for _, network in found}
    places = [
        (parent, child, network)
        for parent in model.modules()
        for child, network in parent._modules.items()
        if network is not None and id(network) in made
    ]
    try:
        for parent, child, network in places:
            setattr(parent, child, made[id(network)])
        yield model
    finally:
        for parent, child, network in places:
            setattr(parent, child, network)
