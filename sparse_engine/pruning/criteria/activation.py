"""Activation: w H w^T of each output row, the energy of the output that the row computes.

An output whose energy is small is cut. H = X X^T, so w H w^T is the sum of (w x)^2 over all
calibration tokens. The bias stays where it is, so it does not count; and with a recovery that
shifts the bias, H is centred, so that the mean of the output does not count either.

Of a structure it is tr(W_C H_CC W_C^T), the energy of what the layers that read it make of its
columns C.

Hu et al. 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
Architectures", arXiv:1607.03250; Muralidharan et al. 2024, "Compact Language Models via Pruning and
Knowledge Distillation", arXiv:2407.14679.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups, Reader, Removals
from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.granularity.base import Granularity


@dataclass(frozen=True)
class Activation(Criterion):
    """Removes output rows, or structures, that compute little.

    All weights of a row have the same score, so every group of weights has to consist of whole
    rows, as in Block(1, "all").

    Args:
        threshold: removes every group whose energy is less than this share of that of all outputs
            of the layer, of a structure those of the layers that read it. No sparsity is given
            then.
    """

    name = "activation"
    needs = ("hessian",)
    needs_whole_rows = True
    scores_outputs = True
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(
                f"criterion activation: threshold={self.threshold} is no share between 0 and 1"
            )

    @property
    def decides_sparsity(self) -> bool:
        return self.threshold is not None

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.hessian is not None
        energy = ((weight @ inputs.hessian) * weight).sum(1, keepdim=True).clamp_min(0)
        return energy.expand_as(weight)

    def quota(
        self, weight: Tensor, scores: Tensor, granularity: Granularity, sparsity: float
    ) -> int:
        if self.threshold is None:
            return super().quota(weight, scores, granularity, sparsity)
        groups = granularity.group_scores(scores)
        below = int((groups < self.threshold * scores[:, 0].sum()).sum())
        return min(below, groups.numel() - 1)

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        return groups.of_columns([_column_energies(reader) for reader in groups.readers])

    def group_quota(self, groups: Groups, removals: Removals) -> int:
        assert self.threshold is not None
        energy = sum(reader.energy for reader in groups.readers)
        return int((removals.costs < self.threshold * energy).sum())


def _column_energies(reader: Reader) -> Tensor:
    """The energy of each group, shared out among its columns, float64 [in]."""
    weight, hessian = reader.weight.double(), reader.hessian
    if len(reader.groups.unique()) == len(reader.groups):
        return weight.square().sum(0) * hessian.diagonal()
    products = (weight.T @ weight).mul_(hessian)  # [in, in]
    together = reader.groups[:, None] == reader.groups[None, :]
    return products.masked_fill_(~together.to(products.device), 0).sum(1)
