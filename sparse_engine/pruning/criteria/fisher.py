"""Fisher: 1/2 w^T F w, the second-order change of the loss, diagonal or in blocks.

With F the empirical Fisher information E[g g^T] over single examples, restricted to blocks of
consecutive weights of a row:

    diagonal   1/2 w^2 E[g^2]
    blocks     1/2 w_Q^T ((F + lambda I)^-1_QQ)^-1 w_Q   for the weights Q of a group in a block,

summed over the rows of the group: what the loss grows by if the other weights of the blocks adapt.
The kept weights K then do adapt to all removed weights R of their block at once,

    w_K + (F + lambda I)_KK^-1 F_KR w_R.

LeCun et al. 1990, "Optimal Brain Damage" (diagonal); Kurtic et al. 2022, "The Optimal BERT Surgeon:
Scalable and Accurate Second-Order Pruning for Large Language Models", arXiv:2203.07259 (blocks of
50). The inverses come from batched Cholesky factors of the blocks instead of a rank-one update for
each gradient as in the paper: the result is the same, and rounding errors do not add up.

Of structures it is the Fisher information of factors m of the groups, which are 1 before and 0
after removal. To remove the groups S raises the loss by 1/2 sum_{i, j in S} E[dL/dm_i dL/dm_j];
groups are removed one after another, each time the one that adds least. Kwon et al. 2022, "A Fast
Post-Training Pruning Framework for Transformers", arXiv:2204.09656. The paper then tunes the masks
that are left by least squares; the recovery `least_squares` does the same for all weights of the
layers that read the groups, of which a factor of each group is a special case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups, Removals
from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.recovery.cholesky import factorise

MAX_BLOCK = 1024
DAMPING = 1e-2  # lambda, relative to the mean of the diagonal of F over the layer
PART = 1 << 22  # numbers of the blocks that are factorised at once (16 MB)


@dataclass(frozen=True)
class Fisher(Criterion):
    """Removes weights whose removal raises the loss least, to second order.

    Args:
        block: number of consecutive weights of a row whose second derivatives are known together;
            1 is the diagonal. It is rounded down to a multiple of the columns of a group, so that a
            group lies within one block; wider groups are cut into parts that are scored apart.
        per_row: compare weights within an output row, as wanda does.
    """

    name = "fisher"
    for_elements = ("block", "per_row")
    needs = ("fisher",)
    block: int = 1
    per_row: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.block <= MAX_BLOCK:
            raise UsageError(f"fisher: block {self.block} is not a number from 1 to {MAX_BLOCK}")

    def fisher_width(self, span: int) -> int:
        if span <= self.block:
            return self.block // span * span
        return next(width for width in range(self.block, 0, -1) if span % width == 0)

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.fisher is not None
        return _scores(weight, inputs.fisher, 1)

    def element_scores(
        self, weight: Tensor, inputs: Inputs, granularity: Granularity, generator: torch.Generator
    ) -> Tensor:
        assert inputs.fisher is not None
        # With a fixed pattern weights of a group are removed one by one.
        span = 1 if granularity.fixed_sparsity is not None else granularity.span(weight.shape[1])
        return _scores(weight, inputs.fisher, math.gcd(span, inputs.fisher.shape[-1]))

    def removals(self, groups: Groups, generator: torch.Generator) -> Removals:
        assert groups.gradients is not None
        slopes = groups.gradients.double()
        information = slopes.T @ slopes / len(slopes)  # [groups, groups]
        growth = information.diagonal() / 2
        order, costs = [], []
        for _ in range(groups.count):
            chosen = int(growth.argmin())
            order.append(chosen)
            costs.append(float(growth[chosen]))
            growth += information[chosen]
            growth[chosen] = torch.inf
        return Removals(torch.tensor(order), torch.tensor(costs, dtype=torch.float64))

    def prune(
        self,
        weight: Tensor,
        inputs: Inputs,
        granularity: Granularity,
        sparsity: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        pruned, keep = super().prune(weight, inputs, granularity, sparsity, generator)
        assert inputs.fisher is not None
        if inputs.fisher.shape[-1] > 1:
            pruned = _adapt(weight, keep, inputs.fisher)
        return pruned, keep


def _scores(weight: Tensor, fisher: Tensor, span: int) -> Tensor:
    """What the loss grows by for each part of `span` consecutive weights, divided by the span.

    Args:
        weight: [out, in]; those that are zero are not there for the others.
        fisher: [out, blocks, width, width].
        span: a divisor of the width.

    Returns:
        [out, in].
    """
    if fisher.shape[-1] == 1:
        return weight.square() * fisher.reshape(weight.shape) / 2
    damping = _damping(fisher, weight)
    rows = _in_blocks(weight, fisher)
    scores = torch.empty_like(rows)
    for at in _parts(fisher):
        w = rows[at]
        inverse = torch.cholesky_inverse(factorise(_restricted(fisher, at, w != 0, damping)))
        if span == 1:
            scores[at] = w.square() / inverse.diagonal(dim1=1, dim2=2) / 2
            continue
        parts = w.reshape(len(w), -1, span, 1)
        # The diagonal blocks [parts, span, span] of each inverse.
        of_parts = inverse.reshape(len(w), -1, span, inverse.shape[1] // span, span)
        corners = of_parts.diagonal(dim1=1, dim2=3).movedim(-1, 1)
        losses = (parts * torch.cholesky_solve(parts, factorise(corners))).sum((2, 3)) / 2
        scores[at] = (losses / span).repeat_interleave(span, 1)
    return _in_rows(scores, weight)


def _adapt(weight: Tensor, keep: Tensor, fisher: Tensor) -> Tensor:
    """The kept weights after those of their block that are removed, both of shape [out, in].

    Weights that were zero before stay zero.
    """
    damping = _damping(fisher, weight)
    rows = _in_blocks(weight, fisher)
    kept = _in_blocks(keep & (weight != 0), fisher)
    adapted = torch.empty_like(rows)
    for at in _parts(fisher):
        k, w = kept[at], rows[at]
        pull = (_blocks(fisher, at) @ (w * ~k)[:, :, None])[:, :, 0] * k  # F_KR w_R
        factor = factorise(_restricted(fisher, at, k, damping))
        adapted[at] = (w + torch.cholesky_solve(pull[:, :, None], factor)[:, :, 0]) * k
    return _in_rows(adapted, weight)


def _damping(fisher: Tensor, weight: Tensor) -> float:
    """lambda."""
    return DAMPING * float(fisher.diagonal(dim1=2, dim2=3).sum()) / weight.numel()


def _in_blocks(x: Tensor, fisher: Tensor) -> Tensor:
    """Rows [out, in] as [out x blocks, width], with zeros behind the last column."""
    width = fisher.shape[-1]
    return F.pad(x, (0, fisher.shape[1] * width - x.shape[1])).reshape(-1, width)


def _in_rows(blocks: Tensor, weight: Tensor) -> Tensor:
    """Blocks [out x blocks, width] as rows, in the shape of the weight."""
    return blocks.reshape(weight.shape[0], -1)[:, : weight.shape[1]]


def _parts(fisher: Tensor) -> Iterator[slice]:
    """Ranges of blocks with at most PART numbers, at least one block."""
    size = max(PART // fisher.shape[-1] ** 2, 1)
    count = fisher.shape[0] * fisher.shape[1]
    return (slice(at, at + size) for at in range(0, count, size))


def _blocks(fisher: Tensor, at: slice) -> Tensor:
    return fisher.flatten(0, 1)[at]


def _restricted(fisher: Tensor, at: slice, support: Tensor, damping: float) -> Tensor:
    """F + lambda I on a support, bool [n, width], and the identity outside; [n, width, width]."""
    blocks = _blocks(fisher, at) * (support[:, :, None] & support[:, None, :])
    blocks.diagonal(dim1=1, dim2=2).add_(torch.where(support, damping, 1.0))
    return blocks
