"""torch.nn.LSTMCell, GRUCell and RNNCell as two linear layers: ih reads the input, hh the state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparse_engine.ops.reference import recurrent_step
from sparse_engine.pruning.unrolled.base import Kind, ParameterViews

TYPES = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def layers(cell: Any, views: ParameterViews) -> dict[str, nn.Module]:
    """The layers ih and hh, which hold the cell's own parameters."""
    return {
        "ih": views.linear(cell.weight_ih, cell.bias_ih),
        "hh": views.linear(cell.weight_hh, cell.bias_hh),
    }


def forward(cell: Any, input: Tensor, hx: Any = None) -> Any:
    """The forward pass of the cell.

    Args:
        cell: the unrolled module.
        input: [batch, features], or [features].
        hx: the state h, or (h, c) of an LSTMCell, [batch, units] each; zeros if None.

    Returns:
        The new state, in the form of `hx`.
    """
    is_lstm = isinstance(cell, nn.LSTMCell)
    x = input if input.dim() == 2 else input[None]
    if hx is None:
        state = (x.new_zeros(len(x), cell.hidden_size),) * (1 + is_lstm)
    else:
        state = tuple(t if t.dim() == 2 else t[None] for t in (hx if is_lstm else (hx,)))
    new_state = recurrent_step(_mode(cell), cell.ih(x), cell.hh(state[0]), state)
    if input.dim() == 1:
        new_state = tuple(t[0] for t in new_state)
    return new_state if is_lstm else new_state[0]


def _mode(cell: Any) -> str:
    if isinstance(cell, nn.RNNCell):
        return f"RNN_{cell.nonlinearity.upper()}"
    return "LSTM" if isinstance(cell, nn.LSTMCell) else "GRU"


CELL = Kind(
    matches=lambda module: type(module) in TYPES,
    base=TYPES,
    parameters=lambda module: ["weight_ih", "weight_hh", "bias_ih", "bias_hh"],
    layers=layers,
    forward=forward,
)
