"""Attention, convolutions and cells of every kind that pruning unrolls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 12, "vdim": 20},
    "other values, batch first": {"vdim": 8, "batch_first": True},
    "bias of keys": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True, "batch_first": True},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 12},
}
CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride, dilation": {"stride": 2, "dilation": 3, "padding": 4},
    "same": {"padding": "same", "dilation": 2, "kernel_size": 4},
    "valid, no bias": {"padding": "valid", "bias": False},
    "groups": {"groups": 4, "padding": 1},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate, same": {"padding": "same", "padding_mode": "replicate", "kernel_size": 2},
    "circular, groups": {"padding": 2, "padding_mode": "circular", "groups": 2},
    "one wide": {"kernel_size": 1, "stride": 2},
}
CELLS: dict[str, Any] = {
    "lstm": lambda **more: nn.LSTMCell(8, 12, **more),
    "gru": lambda **more: nn.GRUCell(8, 12, **more),
    "tanh": lambda **more: nn.RNNCell(8, 12, **more),
    "relu": lambda **more: nn.RNNCell(8, 12, nonlinearity="relu", **more),
}


def attention(kind: str, dtype: torch.dtype = torch.float32) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(16, 4, dtype=dtype, **ATTENTION[kind]).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def conv(kind: str) -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(8, 12, **{"kernel_size": 3, **CONVS[kind]})
