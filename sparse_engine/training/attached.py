"""Calls before and after each step of an optimizer, whoever makes it: a loop, a trainer, a scaler.

A GradScaler does not call an optimizer whose gradients are infinite, so that a step that it skips
is no step here either. Optimizers that it calls nevertheless, the fused ones, have an attribute
that tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer

from sparse_engine.errors import UsageError


class Attached:
    """Hooks of one optimizer.

    Args:
        optimizer: any optimizer of torch.
        before: called when the gradients are complete; with a closure at its end.
        after: called when the weights have changed.

    Raises:
        UsageError: if it is no optimizer, or one that computes several losses in a step.
    """

    def __init__(
        self, optimizer: Any, before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise UsageError(f"optimizer is {optimizer!r:.80}; give a torch.optim.Optimizer")
        if isinstance(optimizer, LBFGS):
            raise UsageError(
                "LBFGS changes the weights several times in a step, between which no mask can be "
                "applied: take another optimizer, such as AdamW"
            )
        self.optimizer = optimizer
        self._before, self._after = before, after
        self._hooks = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if _is_skipped(optimizer):
            return None
        _unscale(optimizer)
        _, *given = args  # the first is the optimizer
        closure = given[0] if given else kwargs.get("closure")
        if closure is None:
            self._before()
            return None

        def closed() -> Any:
            loss = closure()
            self._before()
            return loss

        others = {key: x for key, x in kwargs.items() if key != "closure"}
        return (optimizer, closed, *given[1:]), others

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _is_skipped(optimizer):
            self._after()


def _is_skipped(optimizer: Any) -> bool:
    """Whether a GradScaler has found infinite gradients, so that a fused step changes nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


@torch.no_grad()
def _unscale(optimizer: Any) -> None:
    """Divide gradients by the scale that a GradScaler has left to a fused step."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    optimizer.grad_scale = None
