"""Wanda: (|w_ij| ||x_j||)^2, compared within an output row.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models",
arXiv:2306.11695. The square keeps the order of the paper and makes the scores of a tile add up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.inputs import Inputs


class Wanda(Criterion):
    """Removes weights on inputs of small norm, the same number in every row."""

    name = "wanda"
    needs = ("norms",)
    per_row = True

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.norms is not None
        return (weight * inputs.norms).square()
