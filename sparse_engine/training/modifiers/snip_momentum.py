"""SNIP with momentum: weights are removed whose |w dL/dw| has been small for some steps.

The score of a weight is the exponential mean S = m S + (1 - m) |w dL/dw|, an estimate of how much
the loss changes without it; that of a group is the sum over its weights. What is removed stays
removed.

Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
arXiv:1810.02340; the mean over steps of training is that of Intel Neural Compressor.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sparse_engine.training.learned.groups import Values, WeightGroups, combined
from sparse_engine.training.modifiers.learned import products
from sparse_engine.training.modifiers.scored import Scored
from sparse_engine.training.training import Training


class SnipMomentum(Scored):
    """The share of the schedule is removed, the lowest scores of each layer.

    Attributes:
        momentum: the weight of the earlier steps in the mean.

    Example:
        SnipMomentum(sparsity=0.8, granularity="4x1", end="2ep")
    """

    name: ClassVar[str] = "snip_momentum"
    momentum: float = Field(default=0.9, ge=0, lt=1)

    def contributions(self, training: Training) -> Values:
        return products(training, lambda layer: layer.weight_in(training.model))

    def updated(self, scores: Tensor, groups: WeightGroups, values: Values) -> Tensor:
        added = groups.sums(lambda layer: values(layer).abs())
        return self.momentum * scores + (1 - self.momentum) * added

    def ranked(self) -> list[Tensor]:
        pairs = zip(self._scores, self._keeps, strict=True)
        return [scores.where(keep, -torch.inf) for scores, keep in pairs]

    def renew(self, training: Training) -> None:
        for layer, keep in combined(self._groups, self._keeps):
            layer.weight_in(training.model).mul_(keep)
            training.masks.set(layer, keep, training.optimizer)
