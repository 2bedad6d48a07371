"""The loss of the task on one batch, and what the model returned for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError, one_line
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.gradients.loss import has_labels
from sparse_engine.training.training import Training


def task_loss(
    training: Training, model: nn.Module, batch: Batch, distils: bool
) -> tuple[Tensor, Any]:
    """The loss that the caller's function gives, or the model's own for a batch with labels.

    Args:
        training: the state of the training.
        model: what is called: the model, or a wrapper of it.
        batch: its inputs.
        distils: whether a modifier compares the output with that of a teacher. Then the output is
            always there, and a batch without labels has a loss of 0.

    Returns:
        A finite scalar, and the output of the model; None if it was not called.

    Raises:
        UsageError: if nothing gives a loss, or the model fails.
    """
    loss: Any = None
    outputs: list[Any] = []
    if training.loss is not None:
        hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            with one_line("the function given as loss fails on a batch"):
                loss = training.loss(model, batch.item)
        finally:
            hook.remove()
    if not outputs and (training.loss is None or distils):
        with one_line(f"{type(training.model).__name__} fails on a batch"):
            outputs.append(model(*batch.args, **batch.kwargs))
    output = outputs[-1] if outputs else None
    if training.loss is None and has_labels(batch):
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if loss is None:
            raise UsageError(
                f"the batch holds labels, but {type(training.model).__name__} returns no loss for "
                "them; pass loss=, a function of the model and a batch"
            )
    if loss is not None:
        return _checked(loss), output
    if not distils:
        raise UsageError(
            "nothing gives a loss: put labels into the batch, pass loss=, or add distil to the "
            "recipe"
        )
    device = next(training.model.parameters()).device
    return torch.zeros((), device=device), output


def _checked(loss: Any) -> Tensor:
    """A loss that is a finite scalar; raises UsageError."""
    if not isinstance(loss, Tensor) or loss.is_meta or not loss.is_floating_point():
        raise UsageError(f"the loss is {loss!r:.60}; expected a scalar tensor")
    if loss.numel() != 1:
        raise UsageError(f"the loss has shape {[*loss.shape]}; expected a scalar: take its mean")
    if not loss.isfinite():
        raise UsageError(f"the loss is {loss.item()}: lower the learning rate, or check the batch")
    return loss.reshape(())
