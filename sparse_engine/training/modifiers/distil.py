"""Distil: the outputs and hidden states of the dense model are the labels.

The text needs no labels of its own. Classes are compared by the Kullback-Leibler divergence of the
softened probabilities, times T^2, as in Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network", arXiv:1503.02531; other outputs, and the hidden states between the modules of a stack, by
their squared difference relative to the energy of the dense ones.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.pruning.calibration import Batch
from sparse_engine.training.distillation.outputs import Captured, capture, output_of
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.training import Training


class Distil(Modifier):
    """The loss of the distance to the teacher.

    Attributes:
        weight: of the distance; the loss of the task, if there is one, is multiplied by `task`.
        task: weight of the loss of the task.
        temperature: that softens the probabilities of logits.
        outputs: weight of the distance of the outputs.
        hidden: weight of the distance of the hidden states, the mean over all modules of stacks.

    Example:
        Distil(temperature=2.0, hidden=1.0)
    """

    name: ClassVar[str] = "distil"
    weight: float = Field(default=1.0, gt=0)
    task: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    outputs: float = Field(default=1.0, ge=0)
    hidden: float = Field(default=0.0, ge=0)

    _student: Captured | None = PrivateAttr(default=None)
    _teacher: Captured | None = PrivateAttr(default=None)

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def gives_loss(self) -> bool:
        return True

    def begin(self, training: Training) -> None:
        if self.hidden:
            assert training.teacher is not None
            self._student, self._teacher = capture(training.model, training.teacher)

    def add_loss(self, training: Training, batch: Batch, output: Any, loss: Tensor) -> Tensor:
        if not self.is_active(training):
            return loss
        assert training.teacher is not None
        with torch.no_grad():
            expected = training.teacher(*batch.args, **batch.kwargs)
        distance = loss.new_zeros(())
        if self.outputs:
            distance = distance + self.outputs * self._outputs(batch, output, expected)
        if self._student is not None and self._teacher is not None:
            pairs = zip(self._student.states, self._teacher.states, strict=True)
            terms = [relative(batch, state, dense) for state, dense in pairs]
            distance = distance + self.hidden * torch.stack(terms).mean()
        return self.task * loss + self.weight * distance

    def _outputs(self, batch: Batch, output: Any, expected: Any) -> Tensor:
        state, is_logits = output_of(output)
        dense, _ = output_of(expected)
        if not is_logits:
            return relative(batch, state, dense)
        state, dense = (rows(batch, x) / self.temperature for x in (state, dense))
        divergence = F.kl_div(
            F.log_softmax(state, -1),
            F.log_softmax(dense, -1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * self.temperature**2

    def finish(self, training: Training) -> None:
        for captured in (self._student, self._teacher):
            if captured is not None:
                captured.remove()


def rows(batch: Batch, x: Tensor) -> Tensor:
    """The rows [tokens, features] of an output that are none of padding, in float32."""
    mask = batch.mask_of(x)
    return (x.reshape(-1, x.shape[-1]) if mask is None else x[mask]).float()


def relative(batch: Batch, state: Tensor, dense: Tensor) -> Tensor:
    """|state - dense|^2 / |dense|^2 over the tokens that are none of padding."""
    state, dense = rows(batch, state), rows(batch, dense)
    return (state - dense).square().sum() / dense.square().sum().clamp_min(1e-12)
