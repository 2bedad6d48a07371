"""The row order of recurrent weights: the gates of 16 units are adjacent."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT_TILE = 16
"""Units whose gates are adjacent rows: as many as a vector has lanes."""


def interleave_gates(rows: Tensor, gates: int) -> Tensor:
    """Reorder the rows of a torch.nn weight or bias for the kernels.

    Args:
        rows: [gates x units, ...], all units of the first gate first.
        gates: Rows of a unit.

    Returns:
        [ceil(units / 16) x gates x 16, ...]: tiles of 16 units, gate after gate, with zeros for the
        units past the last.
    """
    by_gate = rows.unflatten(0, (gates, -1))
    units = by_gate.shape[1]
    padded = rows.new_zeros(gates, -(-units // UNIT_TILE) * UNIT_TILE, *rows.shape[1:])
    padded[:, :units] = by_gate
    return padded.unflatten(1, (-1, UNIT_TILE)).transpose(0, 1).flatten(0, 2)


def deinterleave_gates(rows: Tensor, gates: int, units: int) -> Tensor:
    """The inverse of `interleave_gates`: [gates x units, ...]."""
    tiles = rows.unflatten(0, (-1, gates, UNIT_TILE))
    return tiles.transpose(0, 1).flatten(1, 2)[:, :units].flatten(0, 1)


def step_biases(
    input_bias: Tensor | None, hidden_bias: Tensor | None, mode: str
) -> tuple[Tensor | None, Tensor | None]:
    """The biases of the input and of the hidden product, with all that can be added beforehand in
    the first.

    A GRU keeps the hidden bias of its third gate, which the reset gate scales:
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn)). The other modes add both biases to the gates.

    Args:
        input_bias, hidden_bias: [rows], interleaved; a network has both or none.
        mode: LSTM, GRU, RNN_TANH or RNN_RELU.

    Returns:
        float32 [rows] each, or None.
    """
    if input_bias is None or hidden_bias is None:
        return None, None
    input_bias, hidden_bias = input_bias.float(), hidden_bias.float()
    if mode != "GRU":
        return input_bias + hidden_bias, None
    separate = torch.zeros_like(hidden_bias)
    separate.view(-1, 3, UNIT_TILE)[:, 2] = hidden_bias.view(-1, 3, UNIT_TILE)[:, 2]
    return input_bias + (hidden_bias - separate), separate
