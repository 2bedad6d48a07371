"""When something happens while a model is trained: in steps of the optimizer, or in epochs."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator

from sparse_engine.errors import UsageError

EPOCHS = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?ep")
MAX_STEPS = 10**12
"""Of a training; more are a mistake in a recipe."""


def _checked(value: Any) -> Any:
    if isinstance(value, int) and not 0 <= value <= MAX_STEPS:
        raise ValueError("expected a number of steps from 0 to 10^12, or epochs such as 2ep")
    if isinstance(value, str) and not EPOCHS.fullmatch(value):
        raise ValueError("expected a number of steps such as 500, or epochs such as 1.5ep")
    return value


Moment = Annotated[int | str, AfterValidator(_checked)]
"""A number of optimizer steps, as 500, or of epochs, as "1.5ep"."""


MAX_EVENTS = 100_000
"""In a window; more are a mistake in a recipe."""


def steps_of(moment: int | str, steps_per_epoch: int | None) -> int:
    """A moment in steps.

    Args:
        moment: a number of steps, or of epochs.
        steps_per_epoch: how many steps of the optimizer an epoch has; None if that is unknown.

    Raises:
        UsageError: if epochs are given and their number of steps is unknown, or too large.

    Example:
        steps_of("1.5ep", 100)  # 150
    """
    if isinstance(moment, int):
        return moment
    match = EPOCHS.fullmatch(moment)
    assert match is not None
    if steps_per_epoch is None:
        raise UsageError(
            f"{moment} is a number of epochs: pass steps_per_epoch= to the Pruner, or give steps"
        )
    epochs = float(match[1])
    if epochs * steps_per_epoch > MAX_STEPS:
        raise UsageError(f"{moment:.40} are more than 10^12 steps; give fewer epochs")
    return math.ceil(epochs * steps_per_epoch)


def steps_every(
    every: int | str, first: int, last: int, steps_per_epoch: int | None, what: str
) -> range:
    """The steps of a window, from its first one on, that lie so far apart.

    Args:
        every: from one to the next, in steps or epochs.
        first: the first step.
        last: the end of the window, which is not among them.
        steps_per_epoch: as `steps_of` takes it.
        what: the name of the option, for messages.

    Raises:
        UsageError: if `every` is less than one step, or there are more than MAX_EVENTS.

    Example:
        list(steps_every("0.5ep", 0, 200, 100, "every"))  # [0, 50, 100, 150]
    """
    distance = steps_of(every, steps_per_epoch)
    if distance < 1:
        raise UsageError(f"{what} {every} is less than one step")
    steps = range(first, last, distance)
    if (last - first) // distance > MAX_EVENTS:
        raise UsageError(f"{what} {every} gives {len(steps)} events; give a longer distance")
    return steps
