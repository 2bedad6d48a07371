"""Soft movement: the masks of movement by a threshold, so that the sparsity is learned too.

The model computes with W' = W * M, and M = 1 where sigmoid(S) is above the threshold. The scores S
descend on

    loss + strength * sum_g n_g sigmoid(S_g) / sum_g n_g

over groups g of n_g weights, where the gradient of the loss passes the mask straight through: it is
W dL/dW', summed over the weights of a group. As in the authors' code the scores are trained by
Adam.

Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr
from torch import Tensor

from sparse_engine.training.learned.groups import combined
from sparse_engine.training.learned.parameters import GroupParameters
from sparse_engine.training.learned.removed import RemovedValues
from sparse_engine.training.modifiers.learned import Learned, products
from sparse_engine.training.training import Training


class SoftMovement(Learned):
    """What is removed may come back until the end of the window.

    Attributes:
        strength: of the penalty; more of it gives more zeros.
        threshold: groups are removed where sigmoid(S) is not above it. Scores begin at 0, so that
            sigmoid(S) begins at 0.5.
        learning_rate: of the scores.

    Example:
        SoftMovement(strength=10.0, granularity="32x32", end="3ep")
    """

    name: ClassVar[str] = "soft_movement"
    strength: float = Field(default=1.0, gt=0)
    threshold: float = Field(default=0.1, gt=0, lt=0.5)
    learning_rate: float = Field(default=0.02, gt=0)

    _scores: GroupParameters = PrivateAttr()
    _removed: RemovedValues = PrivateAttr()

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._scores = GroupParameters(self.new_parameters(training, 0.0), self.learning_rate)
        self._removed = RemovedValues(
            (layer for own in self._groups for layer in own.layers), training
        )

    def before_step(self, training: Training) -> None:
        if not (self.is_active(training) and self.is_learning(training)):
            return
        values = products(training, lambda layer: self._removed.full(layer, training))
        total = sum(own.weights for own in self._groups)
        gradients = []
        for own, scores in zip(self._groups, self._scores.values, strict=True):
            open_ = scores.sigmoid()
            penalty = open_ * (1 - open_) * own.sizes * (self.strength / total)
            gradients.append(training.mean(own.sums(values)) + penalty)
        self._scores.step(gradients)

    def at_step(self, training: Training) -> None:
        first, last = self._window
        if self._is_settled or training.step <= first:
            return
        keeps = self._kept()
        for layer, keep in combined(self._groups, keeps):
            self._removed.renew(layer, keep, training)
        if training.step == last:
            self.settle(training, keeps)

    def _kept(self) -> list[Tensor]:
        scores = self._scores.values
        return self._choice.at_least(scores, [own.sigmoid() > self.threshold for own in scores])

    def settle(self, training: Training, keeps: Sequence[Tensor]) -> None:
        super().settle(training, keeps)
        self._removed.clear()

    def finish(self, training: Training) -> None:
        super().finish(training)
        if not self._is_settled:
            self.settle(training, self._kept())

    def state_dict(self) -> dict[str, Any]:
        own = {"scores": self._scores.state_dict(), "removed": self._removed.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        super().load_state_dict(training, state)
        self._scores.load_state_dict(state["scores"])
        self._removed.load_state_dict(state["removed"])
