"""SNIP: |w E[g]|, the first-order change of the mean loss.

Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
arXiv:1810.02340. The paper scores at initialisation and divides by the sum over the model, which
does not change the order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion, Inputs


class Snip(Criterion):
    """Removes weights whose removal changes the mean loss least."""

    name = "snip"
    needs = ("gradient",)

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.gradient is not None
        return (weight * inputs.gradient).abs()
