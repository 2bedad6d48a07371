"""The loss whose gradients are taken: the caller's, the model's own, or one of its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError, one_line
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients.sampled import sampled_loss

LossFunction: TypeAlias = Callable[[nn.Module, Any], Tensor | None]
"""loss(model, batch): a scalar with a gradient. The batch is a calibration item, as tensors.

While a model is trained, None stands for a batch without labels.
"""

LABELS = ("labels", "start_positions")  # arguments for which models of transformers compute a loss


class Loss(ABC):
    """A loss of one batch.

    Attributes:
        mean_is_zero: whether the mean gradient of the dense model is zero but for the error of
            sampling, so that only the squares of gradients tell something.
        adds_up: whether the loss of a batch is the sum of those of its rows.
    """

    mean_is_zero: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss.

        Args:
            model: the model to run, with gradients enabled.
            batch: its inputs.
            generator: the source of random numbers, on the CPU.

        Returns:
            A finite scalar with a gradient.

        Raises:
            UsageError: if the loss is no such scalar, or the model fails.
        """
        return _checked(self.compute(model, batch, generator), batch)

    @abstractmethod
    def compute(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Any:
        """The loss, before it is checked."""


class GivenLoss(Loss):
    """The function that the caller gives as `loss`."""

    def __init__(self, function: LossFunction) -> None:
        self._function = function

    def compute(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Any:
        with one_line(f"{batch}: the function given as loss fails on it"):
            return self._function(model, batch.item)


class OwnLoss(Loss):
    """The loss that the model returns for a batch with labels."""

    def compute(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Any:
        with batch.naming_errors(model):
            output = model(*batch.args, **batch.kwargs)
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if loss is None:
            raise UsageError(
                f"{batch} holds labels, but {type(model).__name__} returns no loss for them; pass "
                "loss=, a function of the model and a batch"
            )
        return loss


class SampledLoss(Loss):
    """A loss of the outputs alone, whose squared gradients are a Fisher information."""

    mean_is_zero = True
    adds_up = True

    def compute(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Any:
        with batch.naming_errors(model):
            output = model(*batch.args, **batch.kwargs)
        return sampled_loss(output, batch, generator)


def make_loss(function: LossFunction | None, batches: Iterable[Batch]) -> Loss:
    """The loss of a run: that of the caller, else the model's own with labels, else a sampled one.

    Args:
        function: what the caller gave.
        batches: calibration inputs.

    Raises:
        UsageError: if some batches hold labels and others do not.
    """
    if function is not None:
        return GivenLoss(function)
    labelled = [batch for batch in batches if has_labels(batch)]
    if not labelled:
        return SampledLoss()
    for batch in batches:
        if not has_labels(batch):
            raise UsageError(
                f"{batch} has no labels, and {labelled[0]} has: give them to all batches or to none"
            )
    return OwnLoss()


def check_loss(loss: Any) -> None:
    """Raise UsageError unless `loss` is None or can be called."""
    if loss is not None and not callable(loss):
        raise UsageError(
            f"loss is a {type(loss).__name__}; expected a function of the model and a batch that "
            "returns a scalar"
        )


def check_mean(loss: Loss) -> None:
    """Raise UsageError if the mean gradient is zero by the choice of the loss."""
    if loss.mean_is_zero:
        raise UsageError(
            "without labels the mean gradient is zero at the dense model; put labels into the "
            "calibration inputs, pass loss=, or take the criterion taylor or fisher"
        )


def has_labels(batch: Batch) -> bool:
    """Whether a batch holds what a model of transformers computes its own loss from."""
    return any(batch.kwargs.get(name) is not None for name in LABELS)


def _checked(loss: Any, batch: Batch) -> Tensor:
    if not isinstance(loss, Tensor):
        raise UsageError(f"{batch}: the loss is a {type(loss).__name__}; expected a scalar tensor")
    if loss.numel() != 1:
        raise UsageError(f"{batch}: the loss has shape {tuple(loss.shape)}; expected a scalar")
    if not loss.is_floating_point():
        dtype = str(loss.dtype).removeprefix("torch.")
        raise UsageError(f"{batch}: the loss is {dtype}, which has no gradient; expected a float")
    if not loss.requires_grad:
        raise UsageError(
            f"{batch}: the loss has no gradient for any layer to prune; the model and the loss "
            "must not run under torch.no_grad, detach outputs or round them"
        )
    if not loss.isfinite():
        raise UsageError(f"{batch}: the loss is {loss.item()}; are all of its labels padding?")
    return loss.squeeze()
