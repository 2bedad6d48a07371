"""Recurrent networks and their truth in float64: what the tests of recurrent layers share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import sparse_engine as se
from sparse_engine import _core

NETWORKS: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "lstm": (nn.LSTM, se.nn.SparseLSTM, {}),
    "lstm, projection": (nn.LSTM, se.nn.SparseLSTM, {"proj_size": 5}),
    "gru": (nn.GRU, se.nn.SparseGRU, {}),
    "rnn": (nn.RNN, se.nn.SparseRNN, {}),
    "rnn, relu": (nn.RNN, se.nn.SparseRNN, {"nonlinearity": "relu"}),
}
ISAS = _core.presets()


def dense(kind: str, inputs: int = 9, hidden: int = 21, sparsity: float = 0.6, **more: Any) -> Any:
    torch.manual_seed(0)
    cls, _, extra = NETWORKS[kind]
    network = cls(inputs, hidden, **(extra | more)).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.mul_(2)
        if name.startswith("weight"):
            parameter[torch.rand_like(parameter) < sparsity] = 0
    return network


def sparse(kind: str, network: Any, spec: str = "csr", dtype: str = "float32") -> Any:
    return NETWORKS[kind][1].from_dense(network, se.SparseConfig(spec, dtype))


def flat(output: Any) -> list[Tensor]:
    """All tensors of what a network returns."""
    y, state = output
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *(state if isinstance(state, tuple) else (state,))]


def error_of(found: Any, expected: Any) -> float:
    pairs = list(zip(flat(found), flat(expected), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())


def truth(network: Any, x: Any, state: Any = None) -> Any:
    """torch in float64."""
    exact = copy.deepcopy(network).double()
    if isinstance(state, tuple):
        state = tuple(t.double() for t in state)
    elif state is not None:
        state = state.double()
    return exact(x.double() if isinstance(x, Tensor) else x.to(torch.float64), state)


def random_state(network: Any, batch: int) -> Any:
    states = network.num_layers * (2 if network.bidirectional else 1)
    h = torch.randn(states, batch, getattr(network, "proj_size", 0) or network.hidden_size)
    if isinstance(network, nn.LSTM):
        return h, torch.randn(states, batch, network.hidden_size)
    return h
