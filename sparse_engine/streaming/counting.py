"""Zeros of weights that are not in memory, and the space that a run takes on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from sparse_engine.convert.census import Census, census
from sparse_engine.errors import UsageError
from sparse_engine.streaming.checkpoint import Checkpoint, StoredTensor
from sparse_engine.streaming.draft import unfinished


def count_zeros(checkpoint: Checkpoint, tensor_of: Callable[[str], StoredTensor]) -> Census:
    """The weights of a model and their zeros, read in pieces.

    Args:
        checkpoint: the model.
        tensor_of: returns the stored tensor of a name of the model.
    """
    named = checkpoint.model.named_parameters(remove_duplicate=False)
    names = {id(p): name for name, p in named if name in checkpoint.stored}

    def zeros(weight: Tensor) -> int:
        parts = tensor_of(names[id(weight)]).chunks()
        return sum(part.numel() - int(part.count_nonzero()) for part in parts)

    return census(checkpoint.model, zeros)


def check_space(target: Path, needed: int, what: str, why: str) -> None:
    """Raise UsageError unless the disk of `target` has space for a run.

    Args:
        target: the folder that the run writes at the end.
        needed: bytes that the whole run takes; what an unfinished run has written is subtracted.
        what: "pruning" or "converting".
        why: what the bytes are.
    """
    parts = unfinished(target).rglob("*")
    there = sum(path.stat().st_size for path in parts if path.is_file())
    free = shutil.disk_usage(target.absolute().parent).free
    if needed - there > free:
        raise UsageError(
            f"{target.absolute().parent} has {free / 1e6:,.0f} MB free, and {what} takes "
            f"{needed / 1e6:,.0f} MB there: {why}"
        )
