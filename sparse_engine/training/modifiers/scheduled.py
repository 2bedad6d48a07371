"""The base of modifiers that remove more and more in a window of the training."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Annotated

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from sparse_engine.errors import UsageError
from sparse_engine.pruning.seed import check_seed
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.schedules import OneShot, Schedule, find_schedule
from sparse_engine.training.training import Training
from sparse_engine.training.window import Moment, steps_every

EVENTS = 10
"""How often something is removed in a window, if the recipe does not give it."""


def _checked(seed: int) -> int:
    check_seed(seed)
    return seed


Seed = Annotated[int, AfterValidator(_checked)]
"""Of random numbers."""


class Scheduled(Modifier):
    """Something is removed at `start`, then at every `every` steps, and at last at `end`.

    Attributes:
        sparsity: at the end of the window.
        initial: at its beginning.
        schedule: how it rises between the two: one of SCHEDULES. The default is cubic, and one_shot
            without an end.
        every: from one event to the next, in steps or epochs; the default is a tenth of the window.
            A schedule that has its own events, such as multi_step, does without it.
    """

    sparsity: float = Field(gt=0, lt=1)
    initial: float = Field(default=0.0, ge=0, lt=1)
    schedule: str | Schedule | None = None
    every: Moment | None = None

    _events: list[int] = PrivateAttr(default_factory=list)
    _progress: list[float] = PrivateAttr(default_factory=list)  # at each event
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

    @property
    def default_schedule(self) -> str:
        """The name of the schedule, if the recipe gives none."""
        return "one_shot" if self.end is None else "cubic"

    @property
    def events(self) -> tuple[int, ...]:
        return tuple(self._events)

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        super().resolve(steps_per_epoch, end)
        first, last = self._window
        self._schedule = find_schedule(self.schedule or self.default_schedule)
        if isinstance(self._schedule, OneShot):
            last = first
        if last is None:
            raise UsageError(f"{self.name}: schedule {self._schedule} needs an end")
        length = last - first
        if moments := self._schedule.moments:
            if self.schedule is not None and "every" in self.model_fields_set:
                raise UsageError(
                    f"{self.name}: schedule {self._schedule} has its own events; leave out every"
                )
            # A later moment counts where several fall on one step of a short window.
            at = {first + _ceil(moment * length): moment for moment in moments}
        else:
            every = max(length // EVENTS, 1) if self.every is None else self.every
            what = f"{self.name}: every"
            steps = [*steps_every(every, first, last, steps_per_epoch, what), last]
            at = {step: (step - first) / length if length else 1.0 for step in steps}
        self._events, self._progress = list(at), list(at.values())

    def is_due(self, training: Training) -> bool:
        """Whether something is removed now."""
        place = bisect_left(self._events, training.step)
        return self._events[place : place + 1] == [training.step]

    def sparsity_at(self, step: int, final: float | None = None) -> float:
        """The sparsity that was last set, after some steps; 0 before the first event.

        Args:
            step: how many steps are done.
            final: the sparsity at the end, for a layer that has one of its own.
        """
        final = self.sparsity if final is None else final
        passed = bisect_right(self._events, step)
        if not passed:
            return 0.0
        return self._schedule.sparsity(self._progress[passed - 1], min(self.initial, final), final)

    def finish(self, training: Training) -> None:
        if training.step < self._events[-1]:
            reached = self.sparsity_at(training.step)
            training.report.warnings.append(
                f"{self.name} stopped at step {training.step} of {self._events[-1]}: the schedule "
                f"was at a sparsity of {reached:.3g}, not yet at {self.sparsity}"
            )


def _ceil(x: float) -> int:
    """The next whole number, where one that was missed by rounding counts as met."""
    return math.ceil(round(x, 6))
