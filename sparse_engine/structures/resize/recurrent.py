"""torch.nn.LSTM, GRU, RNN, and their cells."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparse_engine.structures.resize.base import Kept, select

NETWORKS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def matches(module: nn.Module) -> bool:
    """Whether the module is a recurrent network or cell, and none of its subclasses."""
    return type(module) in (*NETWORKS, *CELLS)


def resize(module: Any, kept: dict[str, Kept]) -> None:
    """Keep rows and columns of matrices: ih_l0, hh_l0_reverse, hr_l0 of a network, ih of a cell."""
    first = "_l0" if type(module) in NETWORKS else ""
    gates = len(getattr(module, f"weight_ih{first}")) // module.hidden_size
    for name, of in kept.items():
        weight, bias = f"weight_{name}", f"bias_{name}"
        setattr(module, weight, select(select(getattr(module, weight), 0, of.rows), 1, of.columns))
        if getattr(module, bias, None) is not None:
            setattr(module, bias, select(getattr(module, bias), 0, of.rows))
    rows, module.input_size = getattr(module, f"weight_ih{first}").shape
    module.hidden_size = rows // gates
    if type(module) in NETWORKS:
        if module.proj_size:
            module.proj_size = len(module.weight_hr_l0)
        module._init_flat_weights()  # the list that the forward pass reads
