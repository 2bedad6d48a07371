"""SparseGPT: w^2 / u_jj^2 with H^-1 = U^T U, columns from left to right.

The error of each removed weight is compensated in the columns to its right.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", arXiv:2301.00774.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.granularity.tiles import ceil_div
from sparse_engine.pruning.parallel import one_thread
from sparse_engine.pruning.recovery.cholesky import upper_factor_of_inverse

SLICE = 128  # columns whose mask is decided together


class SparseGPT(Criterion):
    """Approximate optimal brain surgeon with one inverse Hessian for all rows."""

    name = "sparsegpt"
    needs = ("hessian",)

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        """w^2 / (H^-1)_jj: the loss of removing one weight when all others compensate for it."""
        assert inputs.hessian is not None
        inverse_diagonal = upper_factor_of_inverse(inputs.hessian).square().sum(0)
        return weight.square() / inverse_diagonal

    def prune(
        self,
        weight: Tensor,
        inputs: Inputs,
        granularity: Granularity,
        sparsity: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        assert inputs.hessian is not None
        factor = upper_factor_of_inverse(inputs.hessian)
        in_features = weight.shape[1]
        pruned, keep = weight.clone(), torch.empty_like(weight, dtype=torch.bool)
        nonzero = weight != 0  # a weight that is zero stays zero and compensates for nothing
        dropped = 0
        width = _slice_width(granularity, in_features)
        starts = range(0, in_features, width)
        stops = [min(start + width, in_features) for start in starts]
        totals = _cumulative_drops(granularity, weight, stops, sparsity)
        for start, stop, total in zip(starts, stops, totals, strict=True):
            part, upper = pruned[:, start:stop], factor[start:stop, start:stop]
            score = (part / upper.diagonal()).square()
            keep[:, start:stop] = granularity.mask(score, total - dropped)
            errors = _compensate(part, keep[:, start:stop], nonzero[:, start:stop], upper)
            pruned[:, stop:] -= errors @ factor[start:stop, stop:]
            pruned[:, stop:] *= nonzero[:, stop:]
            dropped = total
        return pruned, keep


def _slice_width(granularity: Granularity, in_features: int) -> int:
    """Number of columns whose mask is decided together: a multiple of the span of a group."""
    span = granularity.span(in_features)
    # With a fixed pattern the mask of a group is decided after the errors left of it have been
    # compensated.
    if granularity.fixed_sparsity is not None:
        return span
    return max(SLICE // span, 1) * span


def _cumulative_drops(
    granularity: Granularity, weight: Tensor, stops: list[int], sparsity: float
) -> list[int]:
    """Number of groups to remove in the columns up to each stop.

    Groups of zeros are removed first; the others are removed evenly over the columns. The number
    of the whole layer is exact, independent of rounding.
    """
    out_features, in_features = weight.shape
    drop = granularity.quota(out_features, in_features, sparsity)
    if granularity.fixed_sparsity is not None:  # the same share in all columns
        return [granularity.quota(out_features, stop, sparsity) for stop in stops]
    zero = (granularity.group_scores(weight.abs()) == 0).sum(0).cumsum(0)
    groups = [granularity.groups(out_features, stop) for stop in stops]
    span = granularity.span(in_features)
    zeros = [int(zero[ceil_div(stop, span) - 1]) for stop in stops]
    if zeros[-1] >= drop:
        return [drop * count // max(zeros[-1], 1) for count in zeros]
    part = (drop - zeros[-1]) / (groups[-1] - zeros[-1])
    return [
        count + round(part * (total - count)) for count, total in zip(zeros, groups, strict=True)
    ]


def _compensate(part: Tensor, keep: Tensor, nonzero: Tensor, upper: Tensor) -> Tensor:
    """Remove the weights of a slice that are not kept, in place, column by column.

    Args:
        part: [out, width], the slice.
        keep: bool [out, width].
        nonzero: bool [out, width], weights that may change.
        upper: [width, width], the part of U that belongs to the slice.

    Returns:
        [out, width], the removed weights divided by u_jj.
    """
    columns, kept = part.T.contiguous(), keep.T  # [width, out], rows are contiguous
    nonzero = nonzero.T
    errors = torch.zeros_like(columns)
    with one_thread():
        for j in range(columns.shape[0]):
            columns[j] *= nonzero[j]
            errors[j] = columns[j].masked_fill(kept[j], 0) / upper[j, j]
            columns[j:].addr_(upper[j, j:], errors[j], alpha=-1)
    part.copy_(columns.T * keep)
    return errors.T
