"""Activation: w H w^T of each output row, the energy of the output that the row computes.

An output whose energy is small is cut. H = X X^T, so w H w^T is the sum of (w x)^2 over all
calibration tokens. The bias stays where it is, so it does not count; and with a recovery that
shifts the bias, H is centred, so that the mean of the output does not count either.

Hu et al. 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
Architectures", arXiv:1607.03250; Muralidharan et al. 2024, "Compact Language Models via Pruning and
Knowledge Distillation", arXiv:2407.14679.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion, Inputs


class Activation(Criterion):
    """Removes output rows (units, heads, filters) that compute little.

    All weights of a row have the same score, so every group has to consist of whole rows, as in
    Block(1, "all").
    """

    name = "activation"
    needs = ("hessian",)
    needs_whole_rows = True

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.hessian is not None
        energy = ((weight @ inputs.hessian) * weight).sum(1, keepdim=True).clamp_min(0)
        return energy.expand_as(weight)
