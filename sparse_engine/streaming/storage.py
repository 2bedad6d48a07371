"""Tensors of calibration on the disk: what a run of one module leaves for the next one."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.io.tensorfile import tensor_bytes
from sparse_engine.pruning.statistics.storage import Storage

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """The place of a tensor in a file."""

    file: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class DiskStorage(Storage):
    """Appends tensors to the current file of a folder; `fetch` reads them again.

    Tuples, lists, dicts and dataclasses are searched for tensors. Anything else is kept as it is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""

    def start_file(self, name: str) -> None:
        """Write to a new file from now on; one of this name is overwritten."""
        self._name = name
        (self._folder / name).write_bytes(b"")

    def flush(self) -> None:
        """Wait until the current file is on the disk."""
        with open(self._folder / self._name, "rb") as file:
            os.fsync(file.fileno())

    def keep(self, value: T) -> T:
        return _replaced(value, Tensor, self._write)

    def fetch(self, kept: T) -> T:
        return _replaced(kept, Kept, self._read)

    def _write(self, tensor: Tensor) -> Kept:
        with open(self._folder / self._name, "ab") as file:
            start = file.tell()
            file.write(tensor_bytes(tensor))
        return Kept(self._name, start, tuple(tensor.shape), tensor.dtype)

    def _read(self, kept: Kept) -> Tensor:
        data = bytearray(torch.Size(kept.shape).numel() * kept.dtype.itemsize)
        if not data:
            return torch.empty(kept.shape, dtype=kept.dtype)
        path = self._folder / kept.file
        with open(path, "rb") as file:
            file.seek(kept.start)
            if file.readinto(data) != len(data):
                raise InvalidFileError(f"{path}: calibration states are cut short")
        return torch.frombuffer(data, dtype=kept.dtype).view(kept.shape)


def _replaced(value: Any, kind: type, change: Any) -> Any:
    """A value in which every part of a kind was replaced."""
    if isinstance(value, kind):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_replaced(item, kind, change) for item in value)
    if type(value) is dict:
        return {key: _replaced(item, kind, change) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, Kept | type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **_replaced(parts, kind, change))
    return value
