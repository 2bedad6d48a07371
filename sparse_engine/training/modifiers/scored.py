"""The base of modifiers that remove the groups of the lowest scores by a schedule."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.groups import Values, WeightGroups, full_precision
from sparse_engine.training.learned.parameters import copy_tensors
from sparse_engine.training.modifiers.learned import Learned
from sparse_engine.training.modifiers.scheduled import EVENTS, Scheduled
from sparse_engine.training.training import Training

TIE = 1e-12
"""Times |w|, where scores begin: magnitude decides while there is no gradient.

The distance of a model to a copy of itself, as it is distilled, has none before the first removal.
"""


class Scored(Learned, Scheduled):
    """Scores are collected from the first step of the training on.

    Attributes:
        allocator: "uniform" removes the same share from every layer; with "raw" the groups of all
            layers compete, and the sparsity is that of the weights in them.
    """

    allocator: Literal["uniform", "raw"] = "uniform"

    _scores: list[Tensor] = PrivateAttr(default_factory=list)
    _keeps: list[Tensor] = PrivateAttr(default_factory=list)

    @property
    def default_schedule(self) -> str:
        return "cubic"

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        super().resolve(steps_per_epoch, end)
        first = self._events[0]
        if first == 0 and self.sparsity_at(first) > 0:
            raise UsageError(
                f"{self.name}: there are no scores before the first step; give a later start, or "
                "initial 0 and a schedule that rises"
            )

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._scores = [TIE * own.sums(_magnitudes(training)) for own in self._groups]
        self._keeps = [torch.ones_like(own, dtype=torch.bool) for own in self._scores]

    @abstractmethod
    def contributions(self, training: Training) -> Values:
        """W * dL/dW' of each weight of a layer."""

    @abstractmethod
    def updated(self, scores: Tensor, groups: WeightGroups, values: Values) -> Tensor:
        """The scores of the groups of a layer after one more step.

        Args:
            scores: before it, [count].
            groups: of the layer.
            values: W * dL/dW' of each weight.
        """

    @abstractmethod
    def renew(self, training: Training) -> None:
        """Replace the masks by those of the groups that are kept now."""

    def before_step(self, training: Training) -> None:
        if not self.is_learning(training):
            return
        values = self.contributions(training)
        pairs = zip(self._scores, self._groups, strict=True)
        # The order of a sum may differ between processes, whose masks have to agree.
        self._scores = [training.mean(self.updated(own, groups, values)) for own, groups in pairs]

    def at_step(self, training: Training) -> None:
        if self._is_settled or not self.is_due(training):
            return
        share = self.sparsity_at(training.step)
        together = self.allocator == "raw"
        self._keeps = self._choice.best(self.ranked(), share, together)
        self.renew(training)
        if training.step == self._events[-1]:
            self.settle(training, self._keeps)
        elif self._events.index(training.step) % max(len(self._events) // EVENTS, 1) == 0 and share:
            self.note(training, self._keeps)

    def ranked(self) -> list[Tensor]:
        """The scores as they are compared."""
        return self._scores

    def finish(self, training: Training) -> None:
        super().finish(training)
        if not self._is_settled:
            self.settle(training, self._keeps)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"scores": self._scores, "keeps": self._keeps}

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        super().load_state_dict(training, state)
        copy_tensors(self._scores, state["scores"])
        copy_tensors(self._keeps, state["keeps"])


def _magnitudes(training: Training) -> Values:
    """|w| of each weight of a layer."""

    def of(layer: TrainedLayer) -> Tensor:
        return full_precision(layer.weight_in(training.model)).abs()

    return of
