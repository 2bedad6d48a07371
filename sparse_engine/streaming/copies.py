"""The shards of a checkpoint, copied, and their tensors overwritten one after the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.checks import dtype_name
from sparse_engine.io.shards import INDEX
from sparse_engine.io.tensorfile import tensor_bytes
from sparse_engine.streaming.checkpoint import Checkpoint, StoredTensor
from sparse_engine.streaming.weights import check_finite

Progress = Callable[[int, int, str], None]


class Copies:
    """Copies of the shards in a folder, with the same headers: names, dtypes and places stay.

    A tensor that was overwritten in part, when the process was killed, is written again as a whole
    when the run continues, because its values are always computed from the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self._checkpoint = checkpoint
        self._folder = folder
        self._written: set[Path] = set()

    def make(self, progress: Progress | None = None) -> None:
        """Copy the shards that are not there yet, and check that all values are finite.

        Raises:
            InvalidFileError: a value is NaN or infinite, or a copy of an earlier run lost bytes.
        """
        shards = self._checkpoint.shards
        for done, (path, tensors) in enumerate(shards.items(), 1):
            if progress is not None:
                progress(done, len(shards), f"copying {path.name}")
            target = self._folder / path.name
            if target.exists():
                if os.stat(target).st_size != os.stat(path).st_size:
                    raise InvalidFileError(
                        f"{target} is cut short: remove {self._folder.parent} to begin again"
                    )
            else:
                part = target.with_name(f"{target.name}.part")
                _copy(path, tensors, part)
                os.replace(part, target)
        index = self._checkpoint.folder / INDEX
        if index.is_file():
            shutil.copyfile(index, self._folder / INDEX)

    def write(self, name: str, values: Tensor) -> None:
        """Overwrite a tensor, by its name in the model, in the dtype that it has in the file.

        Raises UsageError for values that are too large for it.
        """
        stored = self._checkpoint.stored[name]
        converted = values.detach().to(stored.slot.dtype)
        if not converted.isfinite().all():
            raise UsageError(
                f"{name} holds a value too large for {dtype_name(stored.slot.dtype)}, its dtype in "
                "the checkpoint: prune a copy in float32 or bfloat16"
            )
        target = self._folder / stored.shard.name
        with open(target, "r+b") as file:
            file.seek(stored.slot.start)
            file.write(tensor_bytes(converted))
        self._written.add(target)

    def flush(self) -> None:
        """Wait until everything that was written is on the disk."""
        for path in self._written:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        self._written.clear()

    def read(self, name: str) -> StoredTensor:
        """The copy of a tensor, by its name in the model."""
        stored = self._checkpoint.stored[name]
        return StoredTensor(stored.name, self._folder / stored.shard.name, stored.slot)


def _copy(path: Path, tensors: list[StoredTensor], target: Path) -> None:
    with open(path, "rb") as source, open(target, "wb") as file:
        first = min((tensor.slot.start for tensor in tensors), default=os.stat(path).st_size)
        file.write(source.read(first))
        for tensor in tensors:
            for chunk in tensor.chunks():
                if chunk.is_floating_point():
                    check_finite(tensor, chunk)
                file.write(tensor_bytes(chunk))
        file.flush()
        os.fsync(file.fileno())
