"""Schedules: how much is removed when; each is a file."""

from __future__ import annotations

from sparse_engine.named import find
from sparse_engine.training.schedules.base import Schedule
from sparse_engine.training.schedules.cubic import Cubic
from sparse_engine.training.schedules.linear import Linear
from sparse_engine.training.schedules.one_shot import OneShot

SCHEDULES: tuple[type[Schedule], ...] = (OneShot, Linear, Cubic)


def find_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of a text form such as "cubic"; raises UsageError if there is none."""
    return schedule if isinstance(schedule, Schedule) else find(schedule, SCHEDULES)


__all__ = ["SCHEDULES", "Cubic", "Linear", "OneShot", "Schedule", "find_schedule"]
