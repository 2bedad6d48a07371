"""Magnitude: |w|^p of each weight; a group has the mean of its weights.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks",
arXiv:1506.02626: the threshold of a layer is a quality parameter times the standard deviation of
its weights. L1 and L2 norms of filters: Li et al. 2017, "Pruning Filters for Efficient ConvNets",
arXiv:1608.08710.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups, Removals
from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.granularity.base import Granularity


@dataclass(frozen=True)
class Magnitude(Criterion):
    """Removes small weights: the lowest share, or all groups below a threshold.

    Below means that the norm of a group, (mean |w|^p)^(1/p), is less than the threshold. Then the
    criterion decides how many groups of each layer are removed, and no sparsity is given. The
    weights of a structure are the columns that read it and the rows that compute it.

    Args:
        p: 1 or 2. It makes a difference to groups of several weights: with 2 one large weight saves
            a group, with 1 the sum of all counts.
        threshold: the same for all layers.
        sigma: the threshold of a layer is `sigma` times the standard deviation of its weights that
            are not zero; that of a site of structures, of all weights of its groups.
        keep_rows: the best group of every row of groups is kept, so that no output is lost.
    """

    name = "magnitude"
    averages = True
    for_elements = ("keep_rows",)
    p: int = 2
    threshold: float | None = None
    sigma: float | None = None
    keep_rows: bool = False

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise UsageError(f"criterion magnitude: p={self.p} is not 1 or 2")
        for option in ("threshold", "sigma"):
            value = getattr(self, option)
            if value is not None and not (0 < value < math.inf):
                raise UsageError(f"criterion magnitude: {option}={value} is not above 0 and finite")
        if self.threshold is not None and self.sigma is not None:
            raise UsageError("criterion magnitude: give threshold or sigma, not both")

    @property
    def keeps_rows(self) -> bool:
        return self.keep_rows

    @property
    def decides_sparsity(self) -> bool:
        return self.threshold is not None or self.sigma is not None

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        return weight.abs() if self.p == 1 else weight.square()

    def quota(
        self, weight: Tensor, scores: Tensor, granularity: Granularity, sparsity: float
    ) -> int:
        if not self.decides_sparsity:
            return super().quota(weight, scores, granularity, sparsity)
        groups = granularity.group_scores(scores)
        below = int((groups < self._threshold_of(weight) ** self.p).sum())
        return min(below, groups.numel() - (len(groups) if self.keep_rows else 1))

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        """The mean |w|^p of the columns that read a group and of the rows that compute it."""
        none = Inputs()
        columns = [self.score(x.weight, none, generator).sum(0) for x in groups.readers]
        rows = [self.score(weight, none, generator).sum(1) for weight, _ in groups.writers]
        heights = [x.weight.new_full((len(x.groups),), len(x.weight)) for x in groups.readers]
        widths = [w.new_full((len(w),), w.shape[1]) for w, _ in groups.writers]
        sizes = groups.of_columns(heights) + groups.of_rows(widths)
        return (groups.of_columns(columns) + groups.of_rows(rows)) / sizes

    def group_quota(self, groups: Groups, removals: Removals) -> int:
        weights = [x.weight[:, x.groups >= 0].flatten() for x in groups.readers]
        weights += [weight[of >= 0].flatten() for weight, of in groups.writers]
        return int((removals.costs < self._threshold_of(torch.cat(weights)) ** self.p).sum())

    def _threshold_of(self, weight: Tensor) -> float:
        if self.sigma is None:
            assert self.threshold is not None
            return self.threshold
        nonzero = weight[weight != 0]
        return self.sigma * float(nonzero.std(correction=0)) if nonzero.numel() else 0.0
