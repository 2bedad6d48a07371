"""A sharded safetensors checkpoint, and the model that it describes without its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError, UnsupportedModelError
from sparse_engine.io import is_package
from sparse_engine.io.adapters import has_adapter
from sparse_engine.io.bounds import check_checkpoint, check_numbers, most_parameters
from sparse_engine.io.checkpoint import find_folder
from sparse_engine.io.foreign import layout_of
from sparse_engine.io.hugging import empty_model, model_class, read_config
from sparse_engine.io.shards import read_headers
from sparse_engine.io.skeleton import state_of
from sparse_engine.io.tensorfile import Slot, map_file, map_tensors, parse_json

CHUNK = 16 << 20  # bytes that are read at once


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a shard."""

    name: str
    shard: Path
    slot: Slot

    def read(self) -> Tensor:
        """The tensor in its own dtype, in memory; raises InvalidFileError if it is cut short."""
        data = bytearray(self.slot.nbytes)
        with open(self.shard, "rb") as file:
            file.seek(self.slot.start)
            if file.readinto(data) != self.slot.nbytes:
                raise InvalidFileError(f"{self.shard}: tensor {self.name!r} is cut short")
        if not data:
            return torch.empty(self.slot.shape, dtype=self.slot.dtype)
        return torch.frombuffer(data, dtype=self.slot.dtype).view(self.slot.shape)

    def mapped(self) -> Tensor:
        """The tensor as a view of the file, of which only the rows that are used are read."""
        with open(self.shard, "rb") as file:
            return map_tensors(map_file(file.fileno()), self.shard, {self.name: self.slot})[
                self.name
            ]

    def chunks(self) -> Iterator[Tensor]:
        """The elements in pieces of at most CHUNK bytes, each [n]."""
        size = CHUNK // self.slot.dtype.itemsize * self.slot.dtype.itemsize
        end = self.slot.start + self.slot.nbytes
        for at in range(self.slot.start, end, size):
            count = min(size, end - at)
            part = Slot(self.slot.dtype, (count // self.slot.dtype.itemsize,), at, count)
            yield StoredTensor(self.name, self.shard, part).read()


class Checkpoint:
    """A model whose weights stay in the files.

    Attributes:
        folder: the folder of the checkpoint.
        model: the model in evaluation mode; its parameters are on the meta device, and its
            non-persistent buffers have values.
        tensors: all tensors of the files by their names there.
        stored: the tensor of each parameter and persistent buffer, by its name in the model.
    """

    def __init__(self, folder: Path, model: nn.Module, tensors: dict[str, StoredTensor]) -> None:
        """Raises InvalidFileError for a tensor that is missing or has another shape or dtype."""
        self.folder = folder
        self.model = model.eval().requires_grad_(False)
        self.tensors = tensors
        self.stored = _match(folder, model, tensors)

    @property
    def shards(self) -> dict[Path, list[StoredTensor]]:
        """The tensors of each shard, in the order of their data."""
        found: dict[Path, list[StoredTensor]] = {}
        for tensor in self.tensors.values():
            found.setdefault(tensor.shard, []).append(tensor)
        return found

    @property
    def nbytes(self) -> int:
        """Size of all shards on the disk."""
        return sum(os.stat(path).st_size for path in self.shards)


def open_checkpoint(path_or_id: str | Path) -> Checkpoint:
    """Open a Hugging Face folder or id without reading its weights.

    Raises:
        UnsupportedModelError: no such folder or id, a package, an adapter, an unknown architecture.
        InvalidFileError: damaged or missing files, and tensors that do not fit config.json.

    >>> open_checkpoint("./llama").model.config.num_hidden_layers
    22
    """
    folder = find_folder(path_or_id)
    if is_package(folder):
        raise UnsupportedModelError(f"{folder} is a package: streaming reads checkpoints")
    if has_adapter(folder):
        raise UnsupportedModelError(f"{folder} holds an adapter: merge it to stream the model")
    path = folder / "config.json"
    if not path.is_file():
        raise InvalidFileError(f"{folder}: has no config.json: is it a Hugging Face model folder?")
    plain = parse_json(path.read_bytes(), str(path))
    _check_layout(folder, plain)
    headers = read_headers(folder)
    tensors = {name: StoredTensor(name, *place) for name, place in headers.items()}
    names = plain.get("architectures")
    named = isinstance(names, list) and bool(names) and isinstance(names[0], str)
    try:
        cls = model_class(plain, names[0] if named else None)  # type: ignore[index]
        fit = check_checkpoint(cls, plain, {name: t.slot for name, t in tensors.items()})
        limit = most_parameters(len(tensors))
        model = empty_model(cls, read_config(plain), limit, buffers=True)
        fit.apply_(model)
        check_numbers(model)
    except (UnsupportedModelError, InvalidFileError) as error:
        raise type(error)(f"{folder}: {error}") from None
    return Checkpoint(folder, model, tensors)


def _check_layout(folder: Path, plain: dict[str, Any]) -> None:
    """Raise UnsupportedModelError for the layouts of other tools, which are read as a whole."""
    try:
        layout = layout_of(plain)
    except (UnsupportedModelError, InvalidFileError) as error:
        raise type(error)(f"{folder}: {error}") from None
    if layout is not None:
        raise UnsupportedModelError(
            f"{folder} is stored as {layout}, which cannot be streamed: give --no-stream"
        )


def _match(folder: Path, model: Any, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The stored tensor of each name of the model; tied weights need one of their names."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, StoredTensor] = {}
    tied: set[int] = set()  # tensors of the model that have a stored one
    missing: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, tensor in state_of(module):
            name = f"{path}.{key}" if path else key
            names = (name, name.removeprefix(prefix), f"{prefix}{name}")
            stored = next((tensors[n] for n in names if n in tensors), None)
            if stored is None:
                missing[name] = tensor
                continue
            floats = tensor.is_floating_point(), stored.slot.dtype.is_floating_point
            if tuple(tensor.shape) != stored.slot.shape or floats[0] != floats[1]:
                raise InvalidFileError(
                    f"{stored.shard}: tensor {stored.name!r} is {stored.slot.dtype} "
                    f"{list(stored.slot.shape)}, the model has {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )
            found[name] = stored
            tied.add(id(tensor))
    lost = [name for name, tensor in missing.items() if id(tensor) not in tied]
    if lost:
        raise InvalidFileError(
            f"{folder}: tensor {lost[0]!r} of {type(model).__name__} is missing ({len(lost)} in "
            "all); streaming reads tensors by the names of the model alone"
        )
    return found
