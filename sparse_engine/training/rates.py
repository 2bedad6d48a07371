"""Learning rates of an optimizer that are others for one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer

from sparse_engine.errors import UsageError


@contextmanager
def scaled_rates(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Inside of a `with` block the learning rates are multiplied; afterwards they are as before.

    A scheduler of the user sees and sets the rates without the factor.

    Args:
        optimizer: all of its parameter groups have a rate.
        factor: at least 0.

    Raises:
        UsageError: if a group has no rate.
    """
    if factor == 1:
        yield
        return
    before = [group.get("lr") for group in optimizer.param_groups]
    if any(rate is None for rate in before):
        raise UsageError(
            f"{type(optimizer).__name__} computes its own learning rates: take learning_rate out "
            "of the recipe, or give the optimizer an lr"
        )
    try:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate
