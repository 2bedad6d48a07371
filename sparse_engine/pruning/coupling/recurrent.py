"""Adjacent layers of recurrent networks: the gates of a unit, and all that read its state.

The state h of layer k is computed by the rows of ih_lk and hh_lk, one row for each gate. The
columns of hh_lk read it at the next step, and those of ih_l(k+1) in the next layer. A projection
hr_lk comes in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.pruning.coupling.link import Link, in_order, in_turns
from sparse_engine.pruning.unrolled import is_unrolled

GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}


def links(model: nn.Module) -> Iterator[Link]:
    """The links inside every unrolled network and cell."""
    for name, module in model.named_modules():
        if not is_unrolled(module):
            continue
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.RNNBase):
            yield from _of_network(prefix, module)
        elif isinstance(module, nn.RNNCellBase):
            ih, hh = f"{prefix}ih", f"{prefix}hh"
            yield from _between([ih, hh], [hh], module.hidden_size, _gates(module))


def _of_network(prefix: str, network: Any) -> Iterator[Link]:
    hidden, width = network.hidden_size, network.proj_size or network.hidden_size
    suffixes = ("", "_reverse")[: 1 + network.bidirectional]
    for layer in range(network.num_layers):
        for direction, suffix in enumerate(suffixes):
            here = f"{prefix}{{}}_l{layer}{suffix}".format
            above = [f"{prefix}ih_l{layer + 1}{other}" for other in suffixes]
            above = above if layer + 1 < network.num_layers else []
            producers, gates = [here("ih"), here("hh")], _gates(network)
            if network.proj_size:
                yield from _between(producers, [here("hr")], hidden, gates)
                producers, gates = [here("hr")], 1
            yield from _between(producers, [here("hh")], width, gates)
            # Both directions are the input of the next layer, one after the other.
            other = torch.full((width * len(suffixes),), -1)
            other[direction * width : (direction + 1) * width] = in_order(width)
            yield from _between(producers, above, width, gates, other)


def _between(
    producers: list[str],
    readers: list[str],
    units: int,
    gates: int,
    columns: Tensor | None = None,
) -> Iterator[Link]:
    columns = in_order(units) if columns is None else columns
    for producer in producers:
        for reader in readers:
            yield Link(producer, reader, in_turns(units, gates), columns)


def _gates(module: nn.Module) -> int:
    return GATES.get(type(module).__name__, 1)
