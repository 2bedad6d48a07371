"""Compensated least squares: each layer also corrects the errors of the layers before it.

With inputs X of the pruned model, the target Y is the output of the dense model for the same
tokens. If the layer writes to a residual stream, the stream of the dense model minus that of the
pruned model is added. Then, all centred,

    target weight  T = (Y X^T + lambda W)(X X^T + lambda I)^-1 = W + (W D + E)(H + lambda I)^-1
    kept weights   v = argmin |(v - t)(H + lambda I)^(1/2)| on the support of each row
    bias           b' = mean(Y) - V mean(X)

with lambda = 0.01 mean diag H. The ridge pulls to the original weight, not to zero. H, D and E are
defined in statistics/moments.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from sparse_engine.pruning.parallel import for_each
from sparse_engine.pruning.recovery.base import Problem, PrunedLayer, Recovery
from sparse_engine.pruning.recovery.cholesky import factorise
from sparse_engine.pruning.statistics.moments import Moments
from sparse_engine.pruning.statistics.system import System

BATCH_ELEMENTS = 1 << 21  # of the gathered Hessians that are factorised at once (8 MB)


class LeastSquares(Recovery):
    """Refits the kept weights, and the bias if there is one.

    For a layer without a bias nothing is centred: the weights have to fit the means as well.
    """

    name = "least_squares"
    aliases: ClassVar[tuple[str, ...]] = ("lsq",)
    needs = ("hessian",)
    fits_dense_model = True

    def centres(self, has_bias: bool) -> bool:
        return has_bias

    def problem(self, dense: Tensor, system: System | None) -> Problem:
        assert system is not None
        return compensate(dense, system)

    def repair(
        self, layer: PrunedLayer, problem: Problem, system: System | None
    ) -> tuple[Tensor, Tensor | None]:
        assert system is not None
        weight = refit(problem.rhs, system.hessian, layer.keep)
        if layer.bias is None:
            return weight, None
        return weight, refit_bias(layer.dense, layer.bias, weight, system.moments)


def compensate(weight: Tensor, system: System) -> Problem:
    """The least-squares target of a dense weight [out, in]."""
    moments = system.moments
    rhs = weight @ system.hessian
    correction = torch.zeros_like(weight)  # W D + E
    if (drift := moments.drift(system.centred)) is not None:
        correction += weight @ drift
    if (residual := moments.residual(system.centred)) is not None:
        correction += residual
    if not correction.any():
        return Problem(weight, rhs)
    step = torch.cholesky_solve(correction.T, factorise(system.hessian)).T
    return Problem(weight + step, rhs + correction)


def refit(rhs: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """Solve v_S H_SS = rhs_S for every row on its support S = keep[row].

    Adjacent rows with the same support share one factorisation. Supports are sorted by their size
    and solved in batches of bounded size, padded with the identity.

    Args:
        rhs: [out, in].
        hessian: [in, in], positive definite.
        keep: bool [out, in].

    Returns:
        [out, in], zero outside of the supports.
    """
    supports, rows_each = torch.unique_consecutive(keep, dim=0, return_counts=True)
    first_rows = rows_each.cumsum(0) - rows_each
    counts = supports.sum(1)
    solution = torch.zeros_like(rhs)

    def solve(batch: Tensor) -> None:
        width = int(counts[batch].max())
        columns = supports[batch].byte().argsort(dim=1, descending=True, stable=True)[:, :width]
        real = torch.arange(width, device=rhs.device) < counts[batch, None]
        members = torch.arange(int(rows_each[batch].max()), device=rhs.device)
        # The last row of a support fills the batch: it is solved and written several times.
        rows = first_rows[batch, None] + members.minimum(rows_each[batch, None] - 1)
        at = rows[:, None, :], columns[:, :, None]
        values = _solve_padded(hessian, rhs[at], columns, real)
        row_at, column_at = (index.expand_as(values)[real] for index in at)
        solution[row_at, column_at] = values[real]

    for_each(solve, _batches(counts))
    return solution


def _batches(counts: Tensor) -> Iterator[Tensor]:
    """Indices of supports, largest first, as many at a time as BATCH_ELEMENTS allows."""
    order = counts.argsort(descending=True)
    order = order[: int(counts.count_nonzero())]
    while len(order):
        size = max(BATCH_ELEMENTS // int(counts[order[0]]) ** 2, 1)
        yield order[:size]
        order = order[size:]


def _solve_padded(hessian: Tensor, rhs: Tensor, columns: Tensor, real: Tensor) -> Tensor:
    """Solve with submatrices of the Hessian, which are the identity at padding.

    Args:
        hessian: [in, in].
        rhs: [batch, width, rows].
        columns: int64 [batch, width], the rows and columns of each submatrix.
        real: bool [batch, width], False at padding.

    Returns:
        [batch, width, rows].
    """
    # One matrix at a time: several times faster than one gather of [batch, width, width].
    gathered = torch.stack([hessian.index_select(0, at).index_select(1, at) for at in columns])
    if not real.all():
        gathered *= real[:, :, None] & real[:, None, :]
        gathered.diagonal(dim1=1, dim2=2).add_(~real)
        rhs = rhs * real[:, :, None]
    return torch.cholesky_solve(rhs, factorise(gathered))


def refit_bias(weight: Tensor, bias: Tensor, pruned: Tensor, moments: Moments) -> Tensor:
    """The bias that gives the mean of the target: W mean(Xd) + b + mean(Rd - R) - V mean(X).

    Args:
        weight: [out, in], W, dense.
        bias: [out], b.
        pruned: [out, in], V.
        moments: of the input.

    Returns:
        [out].
    """
    shifted = bias + (weight - pruned) @ moments.mean()
    if (drift := moments.drift_mean()) is not None:
        shifted = shifted + weight @ drift
    if (residual := moments.residual_mean()) is not None:
        shifted = shifted + residual
    return shifted
