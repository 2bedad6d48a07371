"""What decides the result of a run, as plain values, which a continued run must have again."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from sparse_engine import __version__
from sparse_engine.pruning.calibration import Batch, fingerprint
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import Selection
from sparse_engine.pruning.recipe import recipe_of
from sparse_engine.streaming.checkpoint import Checkpoint


def describe(
    checkpoint: Checkpoint, method: Method, selection: Selection, batches: list[Batch], seed: int
) -> dict[str, Any]:
    """The request of a run: recipe, version, and fingerprints of what is read."""
    return {
        "library": __version__,
        **recipe_of(method, seed, selection),
        "source": _source_digest(checkpoint),
        "calibration": fingerprint(batches) if batches else None,
    }


def _source_digest(checkpoint: Checkpoint) -> str:
    """Hash of config.json, and of names, sizes and times of change of the shards."""
    digest = hashlib.sha256((checkpoint.folder / "config.json").read_bytes())
    for path in checkpoint.shards:
        status = os.stat(path)
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
