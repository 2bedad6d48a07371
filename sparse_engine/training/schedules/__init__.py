"""Schedules: how much is removed when; each is a file."""

from __future__ import annotations

from sparse_engine.named import find
from sparse_engine.training.schedules.acdc import ACDC
from sparse_engine.training.schedules.base import Schedule
from sparse_engine.training.schedules.cubic import Cubic
from sparse_engine.training.schedules.exponential import Exponential
from sparse_engine.training.schedules.linear import Linear
from sparse_engine.training.schedules.multi_step import MultiStep
from sparse_engine.training.schedules.one_shot import OneShot

SCHEDULES: tuple[type[Schedule], ...] = (OneShot, Linear, Cubic, Exponential, MultiStep, ACDC)


def find_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of a text form such as "cubic"; raises UsageError if there is none."""
    return schedule if isinstance(schedule, Schedule) else find(schedule, SCHEDULES)


__all__ = [
    "ACDC",
    "SCHEDULES",
    "Cubic",
    "Exponential",
    "Linear",
    "MultiStep",
    "OneShot",
    "Schedule",
    "find_schedule",
]
