"""The statistics of a layer that calibration can collect."""

from __future__ import annotations

from typing import Literal, get_args

from sparse_engine.errors import UsageError

Statistic = Literal["norms", "hessian", "gradient", "squared_gradient", "fisher", "mask"]
"""The fields of `criteria.Inputs`; "hessian" includes the norms. "mask" is one of `Groups`."""

GRADIENTS: frozenset[Statistic] = frozenset({"gradient", "squared_gradient", "fisher"})
"""Those that need a backward pass through the whole model."""


def check_needs(owner: str, needs: tuple[Statistic, ...]) -> None:
    """Raise UsageError unless `needs` is a tuple of statistics that calibration collects."""
    known = get_args(Statistic)
    if not isinstance(needs, tuple) or not set(needs) <= set(known):
        raise UsageError(f"{owner} needs {needs!r}; expected a tuple of {', '.join(known)}")
