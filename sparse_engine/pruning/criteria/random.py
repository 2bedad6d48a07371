"""Random: uniform scores; the control that every other criterion has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups
from sparse_engine.pruning.criteria.inputs import Inputs


class Random(Criterion):
    """Uniform scores from the seed, and 0 for weights that are zero already."""

    name = "random"
    averages = True

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        # Drawn on the generator's device, so that a seed gives the same mask on every device.
        # Zeros have the lowest score, so they count towards the requested sparsity.
        return torch.rand(weight.shape, generator=generator).to(weight.device) * (weight != 0)

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        """A number for each group, however large it is; 0 for groups that nothing reads."""
        read = groups.of_columns([reader.weight.count_nonzero(0) for reader in groups.readers])
        return torch.rand(groups.count, generator=generator, dtype=torch.float64) * (read > 0)
