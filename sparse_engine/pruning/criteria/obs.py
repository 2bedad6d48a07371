"""Optimal brain surgeon in stages: w_C (H_SS^-1)_CC^-1 w_C^T, summed over the rows of a tile.

This is exactly what the layer's error grows by if the weights w_C of a row are removed and all
others on the support S of the row are refitted. Only the inverses of a few stages are computed,
instead of one for each weight removed.

Hassibi and Stork 1992, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon";
Frantar and Alistarh 2022, "Optimal Brain Compression: A Framework for Accurate Post-Training
Quantization and Pruning", arXiv:2208.11580.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups, Removals
from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.criteria.structured_obs import costs_of, removal_order
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.granularity.element import Element
from sparse_engine.pruning.granularity.nm import NM
from sparse_engine.pruning.recovery.cholesky import upper_factor_of_inverse
from sparse_engine.pruning.recovery.removal import RemovalCosts

RATIO = 0.9  # of the last cut
GROWTH = 1.5  # ratio of the logarithms of the ratios of one cut and of the next one
Cut = Callable[[Tensor], Tensor]  # keep mask of scores


class Costs(Protocol):
    """What removals cost a weight; see `RemovalCosts`."""

    def of(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The fit and the scores on supports, bool [out, in]."""

    def fit(self, keep: Tensor) -> Tensor:
        """The fit alone."""


@dataclass(frozen=True)
class OBS(Criterion):
    """Cuts in stages; after each one the kept weights are refitted and scored again.

    The two matrices of a recurrent layer are pruned together; see `pruning.gates`. The weights that
    `prune` returns are the least-squares fit to those that it gets, on the keep mask.

    Args:
        ratio: density after the last cut, relative to that before it, 0.1 to 0.95; None is 0.9, and
            0.7 for recurrent layers. Cuts become smaller towards the end, because it is there that
            mistakes cost most. A higher ratio makes more cuts, which lose less and take longer.
        budget: "layer" lets all groups of a layer compete; with "row" every row of groups loses the
            same number.

    Raises:
        UsageError: if the ratio is out of range, or the budget is unknown.
    """

    name = "obs"
    for_elements = ("ratio", "budget")
    scores_outputs = True
    needs = ("hessian",)
    fits = True
    ratio: float | None = None
    budget: str = "layer"

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0.1 <= self.ratio <= 0.95:
            raise UsageError(f"obs: ratio {self.ratio} is out of range; expected 0.1 to 0.95")
        if self.budget not in ("layer", "row"):
            raise UsageError(f"obs: budget {self.budget!r} is not known; choose layer or row")

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        """w^2 / (H^-1)_jj: the loss of removing one weight of the dense layer."""
        assert inputs.hessian is not None
        return weight.square() / upper_factor_of_inverse(inputs.hessian).square().sum(0)

    def removals(self, groups: Groups, generator: torch.Generator) -> Removals:
        """Each cost is exactly what the least-squares errors of the layers that read grow by."""
        return removal_order(costs_of(groups), groups.count)

    def prune(
        self,
        weight: Tensor,
        inputs: Inputs,
        granularity: Granularity,
        sparsity: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        return next(self.trace(weight, inputs, granularity, [sparsity], generator))

    def trace(
        self,
        weight: Tensor,
        inputs: Inputs,
        granularity: Granularity,
        sparsities: Sequence[float],
        generator: torch.Generator,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass through all sparsities in one run of stages.

        The keep mask of each sparsity lies within that of the one before it.
        """
        assert inputs.hessian is not None
        span = 1 if granularity.fixed_sparsity is not None else granularity.span(weight.shape[1])
        costs = RemovalCosts(weight, inputs.hessian, span)
        yield from self.trace_costs(costs, weight != 0, granularity, sparsities)

    def trace_costs(
        self, costs: Costs, keep: Tensor, granularity: Granularity, sparsities: Sequence[float]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for any problem that tells what removals cost.

        Args:
            costs: of the weight.
            keep: bool [out, in], where the weight is not zero.
            granularity: which weights are removed together.
            sparsities: fractions of groups to remove, ascending.
        """
        fitted, score = costs.of(keep)
        cuts = list(self._cuts(granularity, keep, sparsities))
        for left, (cut, is_requested) in zip(reversed(range(len(cuts))), cuts, strict=True):
            keep = keep & cut(_removed_first(score, granularity, keep, self._removed_score))
            if left:
                fitted, score = costs.of(keep)
            else:
                fitted = costs.fit(keep)
            if is_requested:
                yield fitted, keep

    @property
    def _removed_score(self) -> float:
        """The score of groups that are removed already; 0 if it has to count for a row."""
        return 0.0 if self.budget == "row" else -torch.inf

    def _cuts(
        self, granularity: Granularity, support: Tensor, sparsities: Sequence[float]
    ) -> Iterator[tuple[Cut, bool]]:
        """The cuts of a weight with a support, bool [out, in], and whether one was asked for."""
        if granularity.fixed_sparsity is not None:
            if isinstance(granularity, NM):
                present, last = int(support.sum()), int(granularity.mask(support.float()).sum())
                for count in self._counts(present, last)[:-1]:
                    drop = support.numel() - count
                    yield partial(_toward_pattern, pattern=granularity, drop=drop), False
            yield partial(granularity.mask, drop=0), True
            return
        out_features, in_features = support.shape
        groups = granularity.groups(out_features, in_features)
        present = int(granularity.group_scores(support.float()).count_nonzero())
        for sparsity in sparsities:
            last = groups - granularity.quota(out_features, in_features, sparsity)
            for count in self._counts(present, last):
                cut = partial(granularity.mask, drop=groups - count, per_row=self.budget == "row")
                yield cut, count == last
            present = min(present, last)

    def _counts(self, present: int, last: int) -> list[int]:
        """How many of the groups that are present are kept after each cut."""
        first = ratio = self.ratio or RATIO
        counts, kept = {last}, last / ratio
        while kept < first * present:
            counts.add(math.ceil(kept))
            ratio **= GROWTH
            kept /= ratio
        return sorted(counts, reverse=True)


def _toward_pattern(score: Tensor, pattern: NM, drop: int) -> Tensor:
    """Keep mask without `drop` of the weights that a pattern can do without.

    The clearest choices are made first: those whose score is farthest below the lowest one that the
    pattern keeps in their group.
    """
    groups = F.pad(score, (0, -score.shape[1] % pattern.of), value=-torch.inf)
    groups = groups.unflatten(1, (-1, pattern.of))
    lowest = groups.topk(pattern.keep, dim=2).values[..., -1:]
    gaps = (groups - lowest).flatten(1)[:, : score.shape[1]]
    gaps = gaps.masked_fill(pattern.mask(score), torch.inf).masked_fill(score < 0, -torch.inf)
    return Element().mask(gaps, drop)


def _removed_first(
    score: Tensor, granularity: Granularity, support: Tensor, lowest: float
) -> Tensor:
    """Scores with `lowest` for the groups that have no weight in the support, bool [out, in]."""
    if granularity.fixed_sparsity is not None:
        return score.masked_fill(~support, -torch.inf)
    groups = granularity.group_scores(support.float())
    left = granularity.mask(support.float(), int((groups == 0).sum()))
    return score.masked_fill(~left, lowest)
