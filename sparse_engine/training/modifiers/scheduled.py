"""The base of modifiers that remove more and more in a window of the training."""

from __future__ import annotations

from pydantic import Field, PrivateAttr, field_validator, model_validator

from sparse_engine.errors import UsageError
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.schedules import OneShot, Schedule, find_schedule
from sparse_engine.training.training import Training
from sparse_engine.training.window import Moment, steps_of

EVENTS = 10
"""How often something is removed in a window, if the recipe does not give it."""


class Scheduled(Modifier):
    """Something is removed at `start`, then at every `every` steps, and at last at `end`.

    Attributes:
        sparsity: at the end of the window.
        initial: at its beginning.
        schedule: how it rises between the two: one_shot, linear or cubic. The default is cubic, and
            one_shot without an end.
        every: from one event to the next, in steps or epochs; the default is a tenth of the window.
    """

    sparsity: float = Field(gt=0, lt=1)
    initial: float = Field(default=0.0, ge=0, lt=1)
    schedule: str | Schedule | None = None
    every: Moment | None = None

    _events: list[int] = PrivateAttr(default_factory=list)
    _schedule: Schedule = PrivateAttr(default_factory=OneShot)

    @field_validator("schedule", mode="after")
    @classmethod
    def _found(cls, schedule: str | Schedule | None) -> str | Schedule | None:
        return None if schedule is None else str(find_schedule(schedule))

    @model_validator(mode="after")
    def _rises(self) -> Scheduled:
        if self.initial > self.sparsity:
            raise ValueError(f"initial {self.initial} is above the sparsity {self.sparsity}")
        return self

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        super().resolve(steps_per_epoch, end)
        first, last = self._window
        by_default = OneShot() if self.end is None else "cubic"
        self._schedule = find_schedule(self.schedule or by_default)
        if isinstance(self._schedule, OneShot):
            self._events = [first]
            return
        if last is None:
            raise UsageError(f"{self.name}: schedule {self._schedule} needs an end")
        every = max((last - first) // EVENTS, 1)
        if self.every is not None:
            every = steps_of(self.every, steps_per_epoch)
            if every < 1:
                raise UsageError(f"{self.name}: every {self.every} is less than one step")
        self._events = [*range(first, last, every), last]

    def is_due(self, training: Training) -> bool:
        """Whether something is removed now."""
        return training.step in self._events

    def sparsity_at(self, step: int) -> float:
        """The sparsity that the schedule has after some steps."""
        first, last = self._events[0], self._events[-1]
        progress = 1.0 if last == first else min(max((step - first) / (last - first), 0.0), 1.0)
        return self._schedule.sparsity(progress, self.initial, self.sparsity)

    def finish(self, training: Training) -> None:
        if training.step < self._events[-1]:
            reached = self.sparsity_at(training.step) if training.step >= self._events[0] else 0.0
            training.report.warnings.append(
                f"{self.name} stopped at step {training.step} of {self._events[-1]}: the schedule "
                f"was at a sparsity of {reached:.3g}, not yet at {self.sparsity}"
            )
