"""What decides the result of a run, as plain values, which a continued run must have again."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from sparse_engine.config import SparseConfig
from sparse_engine.pruning.recipe import versions
from sparse_engine.streaming.checkpoint import Checkpoint


def pruning_request(
    checkpoint: Checkpoint, recipe: dict[str, Any], calibration: dict[str, Any]
) -> dict[str, Any]:
    """The request of a pruning run.

    Args:
        checkpoint: what is pruned.
        recipe: as `recipe_of` returns it.
        calibration: as `fingerprint` returns it; empty if no calibration inputs are read.
    """
    return {**recipe, "calibration": calibration, **_common(checkpoint)}


def conversion_request(checkpoint: Checkpoint, config: SparseConfig, cpu: str) -> dict[str, Any]:
    """The request of a conversion; formats are measured on one processor."""
    return {
        "format": config.format,
        "dtype": config.dtype,
        "tokens": list(config.tokens),
        "processor": cpu,
        **_common(checkpoint),
    }


def _common(checkpoint: Checkpoint) -> dict[str, Any]:
    """Versions, and a hash of config.json and of names, sizes and times of change of the shards."""
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    for path in checkpoint.shards:
        status = os.stat(path)
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return {"versions": versions(), "source": digest.hexdigest()}
