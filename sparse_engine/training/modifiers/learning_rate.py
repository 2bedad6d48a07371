"""Learning rate: a factor on the learning rates of the optimizer, by the step of the training.

With restarts at the events of the modifiers that prune it is the cyclic rate of Kurtic et al. 2022,
"The Optimal BERT Surgeon", arXiv:2203.07259. Restarts in the middle of the schedule are the
rewinding of Renda et al. 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning",
arXiv:2003.02389.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator

from sparse_engine.errors import UsageError
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.training import Training
from sparse_engine.training.window import EPOCHS, Moment, steps_every, steps_of


class LearningRate(Modifier):
    """Every parameter group keeps its own rate, which is multiplied for each step of the window.

    Between steps the rates are those of the caller, so that a scheduler of the caller goes on as
    without this modifier; the two factors are multiplied. So are those of several `learning_rate`
    in a recipe.

    Attributes:
        schedule: from the end of the warm-up to the end of a pass the factor is constant, or falls
            from `factor` to `final` on a line or along half a cosine wave.
        factor: at the beginning, after the warm-up.
        final: at the end of a pass; a constant schedule does without it.
        warmup: the steps, or epochs, in which the factor rises from 0 at the beginning of a pass.
        restart: the schedule begins anew after every so many steps or epochs, or with "events" when
            a modifier of the recipe prunes. By default there is one pass, the whole window.
        rewind: how far into the schedule a restart goes, in steps or epochs from its beginning. The
            schedule is then as long as the first pass. By default each pass is a whole schedule,
            which ends at the next restart.

    Example:
        LearningRate(schedule="linear", restart="events")
        LearningRate(schedule="cosine", restart="events", rewind="7ep")
    """

    name: ClassVar[str] = "learning_rate"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    factor: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    final: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    warmup: Moment = 0
    restart: Literal["events"] | Moment | None = None
    rewind: Moment | None = None

    _warmup: int = PrivateAttr(default=0)
    _restarts: Sequence[int] = PrivateAttr(default=())
    _rewind: int | None = PrivateAttr(default=None)
    _passes: list[int] = PrivateAttr(default_factory=list)  # the steps at which they begin

    @field_validator("restart", mode="before")
    @classmethod
    def _is_moment(cls, restart: Any) -> Any:
        if isinstance(restart, str) and restart != "events" and not EPOCHS.fullmatch(restart):
            raise ValueError(f"{restart!r:.40} is neither events, nor steps, nor epochs as 2ep")
        return restart

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        super().resolve(steps_per_epoch, end)
        if self._window[1] is None and (self.schedule != "constant" or self.restart is not None):
            raise UsageError(f"{self.name}: without an end the rate can only be constant")
        self._warmup = steps_of(self.warmup, steps_per_epoch)
        first, last = self._window
        if self.restart is not None and self.restart != "events" and last is not None:
            what = f"{self.name}: restart"
            self._restarts = steps_every(self.restart, first, last, steps_per_epoch, what)
        if self.rewind is not None:
            if self.restart is None:
                raise UsageError(f"{self.name}: rewind needs restart, such as restart: events")
            self._rewind = steps_of(self.rewind, steps_per_epoch)

    def begin(self, training: Training) -> None:
        first, last = self._window
        restarts = set(self._restarts)
        if last is not None and self.restart == "events":
            if not training.events:
                raise UsageError(f"{self.name}: restart is events, but no modifier prunes")
            restarts.update(step for step, _ in training.events if first < step < last)
        self._passes = sorted({first, *restarts})
        if self._rewind is not None and self._rewind >= self._length(0):
            raise UsageError(
                f"{self.name}: rewind is step {self._rewind} of a schedule of {self._length(0)}"
            )

    def before_step(self, training: Training) -> None:
        if self.is_active(training):
            training.rate *= self.factor_at(training.step)

    def factor_at(self, step: int) -> float:
        """The factor of a step of the window."""
        current = bisect_right(self._passes, step) - 1
        position = step - self._passes[current]
        if self._rewind is not None and current:
            position += self._rewind
        if position < self._warmup:
            return self.factor * (position + 1) / (self._warmup + 1)
        if self.schedule == "constant":
            return self.factor
        rest = max(self._length(0 if self._rewind is not None else current) - self._warmup, 1)
        progress = min((position - self._warmup) / rest, 1.0)
        left = 1 - progress
        if self.schedule == "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
        return self.final + (self.factor - self.final) * left

    def _length(self, number: int) -> float:
        """The steps of a pass."""
        ends = [*self._passes[1:], self._window[1] or math.inf]
        return ends[number] - self._passes[number]
