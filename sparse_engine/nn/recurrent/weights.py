"""The weights of recurrent networks: rows as the kernels have them, packed as a config asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.backends.cuda import MIN_FILL
from sparse_engine.config import SparseConfig
from sparse_engine.formats import FormatSpec, block_fill
from sparse_engine.nn.linear import SparseLinear

BLOCK = 16
"""Units whose gates lie together: as many as a vector has lanes."""
GPU_COLS = (64, 32, 16, 1)
"""Widths of blocks that "auto" looks for on a GPU, widest first."""


def interleaved(rows: Tensor, gates: int) -> Tensor:
    """Rows [gates x units, ...] of torch as the kernels have them: blocks of 16 units, gate after
    gate, with zeros for units past the last: [ceil(units / 16) x gates x 16, ...].
    """
    parts = rows.unflatten(0, (gates, -1))
    units = parts.shape[1]
    padded = rows.new_zeros(gates, -(-units // BLOCK) * BLOCK, *rows.shape[1:])
    padded[:, :units] = parts
    return padded.unflatten(1, (-1, BLOCK)).transpose(0, 1).flatten(0, 2)


def in_order(rows: Tensor, gates: int, units: int) -> Tensor:
    """What `interleaved` was made from."""
    blocks = rows.unflatten(0, (-1, gates, BLOCK))
    return blocks.transpose(0, 1).flatten(1, 2)[:, :units].flatten(0, 1)


def added_up(
    inputs: Tensor | None, hidden: Tensor | None, mode: str
) -> tuple[Tensor | None, Tensor | None]:
    """The biases of the inputs' and of the hidden product, float32, interleaved: one where they can be
    added up. The reset gate of a GRU stands between its two biases of n.
    """
    if inputs is None or hidden is None:  # a network has both or none
        return None, None
    inputs, hidden = inputs.float(), hidden.float()
    apart = torch.zeros_like(hidden)
    if mode == "GRU":
        apart.view(-1, 3, BLOCK)[:, 2] = hidden.view(-1, 3, BLOCK)[:, 2]
    return inputs + (hidden - apart), apart if mode == "GRU" else None


def same(a: Any, b: Any) -> bool:
    """Whether two nested tuples hold the same objects and numbers."""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a is b or (type(a) is int and a == b)


def version(tensor: Tensor | None) -> int:
    """How often a tensor was written to; inference tensors do not count: call `forget` then."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def packed_layer(
    weight: Tensor, bias: Tensor | None, config: SparseConfig, tokens: int
) -> SparseLinear:
    """A layer of a network in the format that `config` asks for, or that is fastest."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.float(), requires_grad=False)
    spec = config.format
    if spec == "auto" and weight.is_cuda:
        # Blocks of 16 rows are a gate of 16 units, which a step multiplies in one kernel.
        plain = weight.to(config.source_dtype)
        fits = (c for c in GPU_COLS if block_fill(plain, BLOCK, c) >= MIN_FILL)
        spec = next((f"bsr:{BLOCK}x{cols}" for cols in fits), "csr")
    elif spec == "auto":
        return SparseLinear.from_dense(linear, replace(config, tokens=(tokens,)))
    elif spec.startswith("bsr:"):
        params = FormatSpec.parse(spec).params
        spec = f"bsr:{min(params['rows'], BLOCK)}x{params['cols']}"
    return SparseLinear.from_dense(linear, replace(config, format=spec))
