"""The state of a training that is pruned, as the modifiers of a recipe see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.errors import UsageError, one_line
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients import LossFunction
from sparse_engine.training.change import Change, Numbered
from sparse_engine.training.kept import Kept
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
        followers: called when structures have been taken out, to make state fit the new parameters.
        cuts: what was left each time that structures were taken out.
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
    followers: list[Callable[[Change], None]] = field(default_factory=list)
    cuts: list[Kept] = field(default_factory=list)
    _waiting: list[Change] = field(default_factory=list)
    _stale: list[nn.Parameter] = field(default_factory=list)

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
        with torch.no_grad(), one_line("the teacher fails on a batch"):
            if len(devices) == 1 and devices != {device}:
                teacher.to(device)
            return teacher(*batch.args, **batch.kwargs)

    def check_uncut(self, modifier: str) -> None:
        """Raise UsageError if the recipe takes structures out, which a modifier cannot follow."""
        if any(name == "cut" for _, name in self.events):
            raise UsageError(
                f"{modifier} cannot follow cut in one recipe: take the structures out with "
                "se.prune, before the training"
            )

    def adopt(self, optimizer: Optimizer) -> None:
        """Train with an optimizer from now on; it gets the parameters of cuts before this.

        Raises:
            UsageError: if it holds parameters as they were before a cut that a state has restored.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(parameter) in held for parameter in self._stale):
            raise UsageError(
                "the optimizer holds weights as they were before structures were taken out: load "
                "the state of the Pruner first, then make the optimizer"
            )
        for change in self._waiting:
            change.follow_(optimizer)
        self._waiting.clear()
        self.optimizer = optimizer

    def follow(self, change: Change) -> None:
        """Let masks, modifiers and the optimizer follow a cut of the model."""
        self._renew(change)
        change.carry_gradients()
        if self.optimizer is None:
            self._waiting.append(change)
        else:
            change.follow_(self.optimizer)

    def restore(self, cuts: Iterable[Kept]) -> None:
        """Take out of the model what a training that goes on has taken out.

        Raises:
            InvalidFileError: if this is not the model that was cut.
        """
        for kept in cuts:
            numbered = Numbered(self.model)
            kept.apply_(numbered.copy)
            kept.apply_(self.model)
            change = numbered.change(self.model)
            self._renew(change)
            self._stale += change.replaced
            self.cuts.append(kept)

    def _renew(self, change: Change) -> None:
        old, new = change.old, change.new
        self.masks.drop(name for name in old if new.get(name) is not old[name])
        for follower in self.followers:
            follower(change)

    def note(self, modifier: str, text: str) -> None:
        """Add an event to the report."""
        self.report.events.append(Event(self.step, modifier, text, self.masks.sparsity))
