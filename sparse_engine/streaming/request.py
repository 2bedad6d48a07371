"""What decides the result of a run, as plain values, which a continued run must have again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sparse_engine import __version__
from sparse_engine.config import SparseConfig
from sparse_engine.io.tensorfile import tensor_bytes
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import Selection
from sparse_engine.streaming.checkpoint import Checkpoint


def describe(
    checkpoint: Checkpoint, method: Method, selection: Selection, batches: list[Batch], seed: int
) -> dict[str, Any]:
    """The request of a run: method, seed, version, and fingerprints of what is read."""
    return {
        "version": __version__,
        "sparsity": method.sparsity,
        "granularity": str(method.granularity),
        "criterion": str(method.criterion),
        "recovery": str(method.recovery),
        "allocator": str(method.allocator),
        "targets": [pattern.text for pattern in selection.targets],
        "ignore": [pattern.text for pattern in selection.ignore],
        "overrides": [
            f"{v.pattern.text} {v.criterion} {v.setting.granularity} {v.setting.sparsity}"
            for v in method.variants
        ],
        "seed": seed,
        "source": _source_digest(checkpoint),
        "calibration": _calibration_digest(batches) if batches else None,
    }


def describe_conversion(checkpoint: Checkpoint, config: SparseConfig, cpu: str) -> dict[str, Any]:
    """The request of a conversion; formats are measured on one processor."""
    return {
        "version": __version__,
        "format": config.format,
        "dtype": config.dtype,
        "tokens": list(config.tokens),
        "processor": cpu,
        "source": _source_digest(checkpoint),
    }


def _source_digest(checkpoint: Checkpoint) -> str:
    """Hash of config.json, and of names, sizes and times of change of the shards."""
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    for path in checkpoint.shards:
        status = os.stat(path)
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _calibration_digest(batches: list[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name, value in (*enumerate(batch.args), *sorted(batch.kwargs.items())):
            for part in _parts(value):
                if isinstance(part, Tensor):
                    digest.update(f"{name} {part.dtype} {tuple(part.shape)}\n".encode())
                    digest.update(tensor_bytes(part))
                else:
                    digest.update(f"{name} {part!r}\n".encode())
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)
    else:
        yield value
