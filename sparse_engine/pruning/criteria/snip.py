"""SNIP: |w E[g]|, the first-order change of the mean loss.

Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
arXiv:1810.02340. The paper scores at initialisation and divides by the sum over the model, which
does not change the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups
from sparse_engine.pruning.criteria.inputs import Inputs


@dataclass(frozen=True)
class Snip(Criterion):
    """Removes weights whose removal changes the mean loss least.

    Args:
        per_row: compare weights within an output row, as wanda does.
    """

    name = "snip"
    for_elements = ("per_row",)
    needs = ("gradient",)
    per_row: bool = False

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.gradient is not None
        return (weight * inputs.gradient).abs()

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        """|sum of w E[g]| over the weights of a group."""
        assert groups.gradients is not None
        return groups.gradients.double().mean(0).abs()
