"""Magnitude: w^2.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks",
arXiv:1506.02626.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion, Inputs


class Magnitude(Criterion):
    """Small weights leave; a tile counts by its energy, the sum of w^2."""

    name = "magnitude"

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        return weight.square()
