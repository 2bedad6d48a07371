"""Tensors of a checkpoint in float32, converted piece by piece into a file, and mapped."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from sparse_engine.io.tensorfile import ALIGNMENT, Slot, map_file, map_tensors, tensor_bytes
from sparse_engine.streaming.checkpoint import StoredTensor
from sparse_engine.streaming.weights import check_finite


class Float32File:
    """A file of tensors without a header."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._view: mmap.mmap | None = None

    def write(self, stored: dict[str, StoredTensor]) -> dict[str, Tensor]:
        """Write tensors, floating-point ones in float32; returns views of the file by name.

        Raises InvalidFileError for NaN or infinity.
        """
        slots: dict[str, Slot] = {}
        with open(self._path, "wb") as file:
            for name, tensor in stored.items():
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                start, dtype = file.tell(), tensor.slot.dtype
                for chunk in tensor.chunks():
                    if chunk.is_floating_point():
                        dtype, chunk = torch.float32, chunk.float()
                        check_finite(tensor, chunk)
                    file.write(tensor_bytes(chunk))
                slots[name] = Slot(dtype, tensor.slot.shape, start, file.tell() - start)
            file.write(b"\0" * ALIGNMENT)  # an empty file cannot be mapped
        with open(self._path, "rb") as file:
            self._view = map_file(file.fileno())
        return map_tensors(self._view, self._path, slots)

    def drop_pages(self) -> None:
        """Give the memory of the mapped file back; pages are read again when they are used."""
        if self._view is not None:
            self._view.madvise(mmap.MADV_DONTNEED)
