"""The state of a training that is pruned, as the modifiers of a recipe see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import one_line
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients import LossFunction
from sparse_engine.training.masks import Masks
from sparse_engine.training.report import Event, TrainingReport


@dataclass
class Training:
    """What modifiers read and change.

    Attributes:
        model: the model, without a wrapper of torch.nn.parallel.
        masks: of its parameters.
        report: receives what happens.
        generator: the source of random numbers, on the CPU.
        teacher: the dense model, in evaluation mode; None without one.
        calibration: items for criteria and recoveries, as `prune` takes them.
        loss: of the task, as `prune` takes it; None for the model's own.
        step: how many steps of the optimizer are done.
        steps_per_epoch: how many steps an epoch has, if that is known.
        optimizer: the one of the last step; None before the first one.
        events: the steps at which modifiers of the recipe prune, with their names.
        rate: factor on the learning rates of the optimizer, for the next step alone.
    """

    model: nn.Module
    masks: Masks
    report: TrainingReport
    generator: torch.Generator = field(default_factory=torch.Generator)
    teacher: nn.Module | None = None
    calibration: Sequence[Any] = ()
    loss: LossFunction | None = None
    step: int = 0
    steps_per_epoch: int | None = None
    optimizer: Optimizer | None = None
    events: Sequence[tuple[int, str]] = ()
    rate: float = 1.0

    @property
    def is_parallel(self) -> bool:
        """Whether several processes train the same model."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the processes; the tensor itself if there is one process."""
        if self.is_parallel:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
        return tensor

    def synchronise(self) -> None:
        """Make the weights of all processes those of the first one."""
        if self.is_parallel:
            for parameter in self.model.parameters():
                dist.broadcast(parameter.detach(), 0)

    def teacher_output(self, batch: Batch) -> Any:
        """What the teacher returns for a batch; it moves to the device of the model.

        Raises:
            UsageError: if the teacher fails.
        """
        teacher = self.teacher
        assert teacher is not None
        devices = {parameter.device for parameter in teacher.parameters()}
        device = next(self.model.parameters()).device
        if len(devices) == 1 and devices != {device}:
            teacher.to(device)
        with torch.no_grad(), one_line("the teacher fails on a batch"):
            return teacher(*batch.args, **batch.kwargs)

    def note(self, modifier: str, text: str) -> None:
        """Add an event to the report."""
        self.report.events.append(Event(self.step, modifier, text, self.masks.sparsity))
