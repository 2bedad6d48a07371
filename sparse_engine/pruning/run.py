"""What the steps of a run of `prune` share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients import LossFunction
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.structures.snapshot import Snapshot


@dataclass(frozen=True)
class Run:
    """One step of a run, without its method.

    Attributes:
        batches: calibration inputs; empty if the method needs none.
        loss: as `prune` takes it.
        progress: as `prune` takes it.
        snapshot: of the model before the first step; receives the values that are going to change.
        dense: a copy of the model before the first step, for a target.
    """

    batches: list[Batch]
    loss: LossFunction | None
    progress: ProgressCallback | None
    snapshot: Snapshot
    dense: nn.Module | None = None
