"""The metric of a run: how it is called, which direction is better, and what a drop is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import UsageError, one_line
from sparse_engine.pruning.evaluation import evaluation_mode

Metric = Callable[[nn.Module], float]
DIGITS = 12  # of a drop
LARGEST = 1e100  # squares of metrics are summed


@dataclass(frozen=True)
class Quality:
    """A metric, and how much of it may be lost.

    Attributes:
        metric: metric(model) gives a number.
        max_drop: the largest loss that passes.
        relative: whether losses are fractions of the dense model's value.
        higher_is_better: whether a larger value is better.
    """

    metric: Metric
    max_drop: float
    relative: bool = False
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not callable(self.metric):
            raise UsageError(f"metric is {self.metric!r:.60}; give a function of the model")
        check_max_drop(self.max_drop)
        check_flags(relative=self.relative, higher_is_better=self.higher_is_better)

    @property
    def name(self) -> str:
        """What reports call the metric."""
        return name_of(self.metric)

    def measure(self, model: nn.Module) -> float:
        """The metric of a model, in evaluation mode and without gradients.

        Raises:
            UsageError: if the metric fails, or gives no finite number.
        """
        return finite(measured(model, self.metric))

    def drop(self, value: float, dense: float) -> float:
        """How much worse a value is than that of the dense model; negative if it is better."""
        return drop_of(value, dense, self.higher_is_better, self.relative)

    def check_dense(self, dense: float) -> None:
        """Raise UsageError if no relative loss can be computed."""
        check_relative(self.relative, dense)


def drop_of(value: float, dense: float, higher_is_better: bool, relative: bool) -> float:
    """How much worse a value is than that of the dense model; negative if it is better."""
    loss = dense - value if higher_is_better else value - dense
    # 0.98 - 0.97 is more than 0.01 in binary: digits below a metric's own do not count.
    return round(loss / abs(dense) if relative else loss, DIGITS)


def check_max_drop(max_drop: Any) -> None:
    """Raise UsageError unless `max_drop` is a number that is not negative."""
    is_number = isinstance(max_drop, int | float) and not isinstance(max_drop, bool)
    if not is_number or not 0 <= max_drop <= LARGEST:
        raise UsageError(f"max_drop {max_drop!r:.40}: give a number of 0 or more")


def check_flags(**flags: Any) -> None:
    """Raise UsageError unless all are True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UsageError(f"{name} is {flag!r:.40}; give True or False")


def check_relative(relative: bool, dense: float) -> None:
    """Raise UsageError if no relative loss can be computed."""
    if relative and dense == 0:
        raise UsageError("the metric of the dense model is 0: give an absolute max_drop")


def measured(model: nn.Module, metric: Callable[..., Any], *items: Any) -> float:
    """A metric of a model in evaluation mode, without gradients; it may be NaN or infinite.

    Raises:
        UsageError: if the metric fails, or gives no number.
    """
    what = "the function given as metric fails"
    with evaluation_mode(model), torch.no_grad(), one_line(what):
        value = metric(model, *items)
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            name = type(value).__name__
            raise UsageError(f"metric gives a {name}, which is no number") from None


def is_finite(number: float) -> bool:
    """Whether a value of a metric is neither NaN nor infinite, nor close to that."""
    return abs(number) <= LARGEST


def finite(number: float) -> float:
    """A value of a metric; raises UsageError if it is NaN or infinite."""
    if not is_finite(number):
        raise UsageError(f"metric gives {number}; it has to give a finite number")
    return number


def name_of(function: Any) -> str:
    """The name of a function, or of a callable that has one, for people."""
    if isinstance(name := getattr(function, "name", None), str):
        return name
    name = getattr(function, "__name__", type(function).__name__)
    return "metric" if name == "<lambda>" else str(name).replace("_", " ")
