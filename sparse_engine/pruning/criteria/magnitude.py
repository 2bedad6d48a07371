"""Magnitude: w^2.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks",
arXiv:1506.02626.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion, Inputs


class Magnitude(Criterion):
    """Removes small weights; the score of a tile is the sum of its w^2."""

    name = "magnitude"

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        return weight.square()
