"""Taylor: E[(w g)^2] over calibration batches, the squared first-order change of the loss.

For a structure (w g) is summed over its weights before it is squared: that is the derivative of the
loss with respect to a factor of the whole group.

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups
from sparse_engine.pruning.criteria.inputs import Inputs


@dataclass(frozen=True)
class Taylor(Criterion):
    """Removes weights whose removal changes the loss of single batches least.

    Args:
        signed: (w E[g])^2 instead, so that batches with opposite gradients cancel.
        per_row: compare weights within an output row, as wanda does.
    """

    name = "taylor"
    for_elements = ("per_row",)
    needs = ("squared_gradient",)
    signed: bool = False
    per_row: bool = False

    def __post_init__(self) -> None:
        if self.signed:
            object.__setattr__(self, "needs", ("gradient",))

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        if self.signed:
            assert inputs.gradient is not None
            return (weight * inputs.gradient).square()
        assert inputs.squared_gradient is not None
        return weight.square() * inputs.squared_gradient

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        assert groups.gradients is not None
        slopes = groups.gradients.double()
        return slopes.mean(0).square() if self.signed else slopes.square().mean(0)
