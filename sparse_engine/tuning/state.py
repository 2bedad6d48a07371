"""States of a model: kept in memory, and as tensors by name for files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.io.tensorfile import tensor_bytes
from sparse_engine.structures.fit import find_fit
from sparse_engine.structures.snapshot import Snapshot, unchanged_after_error


class State:
    """A model as it is now, to go back to again and again.

    The values of all parameters and buffers are copied. Structures that are removed later come
    back too.

    Args:
        model: any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._snapshot = Snapshot(model)
        held = [tensor.detach() for _, tensor in named_tensors(model)]
        self._snapshot.keep((tensor, tensor.clone()) for tensor in held)

    def restore(self) -> None:
        """Make the model what it was."""
        self._snapshot.restore()


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, also those that a state dict leaves out; shared ones once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def digest(model: nn.Module) -> str:
    """A SHA-256 of all parameters and buffers, with their names, shapes and dtypes."""
    found = hashlib.sha256()
    for name, tensor in named_tensors(model):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor_bytes(tensor))
    return found.hexdigest()


def take_over(model: nn.Module, stored: Mapping[str, Tensor], where: str) -> None:
    """Give a dense model the values of a state, from which structures may be gone.

    Args:
        model: as it was before the run.
        stored: tensors by name.
        where: the file, for messages.

    Raises:
        InvalidFileError: if the tensors do not fit the model.
    """
    with unchanged_after_error(model):
        find_fit(model, {name: tuple(t.shape) for name, t in stored.items()}).apply_(model)
        own = dict(named_tensors(model))
        if own.keys() != stored.keys():
            name = min(own.keys() ^ stored.keys())
            raise InvalidFileError(f"{where}: tensor {name!r} is not in both file and model")
        for name, tensor in own.items():
            if (tensor.shape, tensor.dtype) != (stored[name].shape, stored[name].dtype):
                raise InvalidFileError(f"{where}: tensor {name!r} does not fit the model")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def zeros_of_matrices(model: nn.Module) -> int:
    """Zeros of all parameters with two or more dimensions; biases may begin at zero."""
    matrices = (p for p in model.parameters() if p.dim() > 1)
    return sum(p.numel() - int(p.detach().count_nonzero()) for p in matrices)
