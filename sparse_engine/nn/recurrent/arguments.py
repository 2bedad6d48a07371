"""Inputs and states of recurrent networks: checks, and conversion from and to torch.nn's shapes.

Internally, states are a tuple: (h,) or (h, c), [layers x directions, batch, features] each, with
the longest sequence first; () for zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.backends import backend_of
from sparse_engine.errors import UsageError
from sparse_engine.nn.recurrent.weights import RecurrentWeights

State = Tensor | tuple[Tensor, Tensor]
"""h, or (h, c) of an LSTM."""
States = tuple[Tensor, ...]


def check_input(network: RecurrentWeights, x: Tensor, dims: int) -> None:
    """Raise UsageError unless x [..., input_size] has `dims` dimensions and a dtype that runs."""
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError("sparse layers are inference only: call them under torch.inference_mode()")
    if x.dtype not in backend_of(x).input_dtypes:
        raise UsageError(f"input is {x.dtype}: cast it to float32 or bfloat16")
    device = next(network.buffers()).device
    if x.device != device:
        raise UsageError(f"input is on {x.device}, the network on {device}: move one of them")
    if x.dim() != dims or x.shape[-1] != network.input_size:
        raise UsageError(
            f"input is {list(x.shape)}, but the network takes [..., {network.input_size}]"
        )


def read_state(
    network: RecurrentWeights, hx: State | None, batch: int, order: Tensor | None, batched: bool
) -> States:
    """The states that a caller gives.

    Args:
        network: Whose states they are.
        hx: h or (h, c), [layers x directions, batch, features], without the batch if not `batched`;
            None for zeros.
        batch: Number of sequences.
        order: The sequences by length, or None where they are in order.
        batched: Whether hx has a batch dimension.

    Raises:
        UsageError: A state is missing or has another shape.
    """
    if hx is None:
        return ()
    pair = network.mode == "LSTM"
    given = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    if pair != isinstance(hx, tuple | list) or len(given) != 1 + pair:
        expected = "a pair of tensors" if pair else "a tensor"
        raise UsageError(f"the state of {type(network).__name__} is {expected}")
    states = []
    for name, tensor, size in zip("hc", given, network.state_sizes, strict=False):
        count = network.state_count
        shape = (count, batch, size) if batched else (count, size)
        if tuple(tensor.shape) != shape:
            raise UsageError(f"state {name} is {list(tensor.shape)}, expected {list(shape)}")
        tensor = tensor.detach() if batched else tensor.detach().unsqueeze(1)
        states.append(tensor if order is None else tensor.index_select(1, order))
    return tuple(states)


def returned_state(states: States, order: Tensor | None, batched: bool) -> State:
    """The inverse of `read_state`; order: positions of the caller's sequences."""
    found = [t if order is None else t.index_select(1, order) for t in states]
    found = found if batched else [t.squeeze(1) for t in found]
    return (found[0], found[1]) if len(found) == 2 else found[0]
