"""Compensated least squares: each layer repairs what the layers before it broke.

With inputs X of the pruned model, the target Y is what the *dense* model gives there, plus the
dense less the pruned residual stream where the layer adds to one. Then, centred,
    target weight  T = (Y X^T + lambda W)(X X^T + lambda I)^-1 = W + (W D + E)(H + lambda I)^-1
    kept weights   v = argmin |(v - t)(H + lambda I)^(1/2)| on the support of each row
    bias           b' = mean(Y) - V mean(X)
with lambda = 0.01 mean diag H. The ridge pulls to the original weight, not to zero. H, D and E
are those of moments.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.pruning.parallel import for_each
from sparse_engine.pruning.recovery.cholesky import factorise
from sparse_engine.pruning.statistics.moments import Moments

RIDGE = 1e-2
ROUNDING = 100  # the ridge is at least this many times what rounding leaves on the diagonal
BATCH_ELEMENTS = 1 << 21  # of the gathered Hessians that are factorised at once (8 MB)


class System:
    """H + lambda I of one input, shared by all layers that read it."""

    def __init__(self, moments: Moments, centred: bool) -> None:
        self.moments = moments
        self.centred = centred
        self.hessian = moments.hessian(centred)
        mean_square = float(self.hessian.diagonal().mean())
        # Constant inputs leave nothing but rounding errors, to which nothing must be fitted.
        self.ridge = max(RIDGE * mean_square, ROUNDING * moments.rounding()) or 1.0
        self.hessian.diagonal().add_(self.ridge)

    def error(self, weight: Tensor, target: Tensor) -> float:
        """Relative output error |(weight - target) X| / |target X|."""
        return (self._energy(weight - target) / self._energy(target).clamp_min(1e-30)).sqrt().item()

    def _energy(self, weight: Tensor) -> Tensor:
        full = ((weight @ self.hessian) * weight).sum()
        return (full - self.ridge * weight.square().sum()).clamp_min(0)


@dataclass(frozen=True)
class Problem:
    """What the weight of one layer should be.

    target:  [out, in], T
    rhs:     [out, in], T (H + lambda I)
    """

    target: Tensor
    rhs: Tensor


def compensate(weight: Tensor, system: System) -> Problem:
    """Least-squares target of a dense weight [out, in]."""
    moments = system.moments
    rhs = weight @ system.hessian
    pull = torch.zeros_like(weight)
    if (drift := moments.drift(system.centred)) is not None:
        pull += weight @ drift
    if (residual := moments.residual(system.centred)) is not None:
        pull += residual
    if not pull.any():
        return Problem(weight, rhs)
    step = torch.cholesky_solve(pull.T, factorise(system.hessian)).T
    return Problem(weight + step, rhs + pull)


def refit(rhs: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """Solve v_S H_SS = rhs_S for every row on its support S = keep[row]; zero elsewhere.

    rhs and keep: [out, in]; hessian: [in, in]. Adjacent rows with the same support share one
    factorisation. Rows are sorted by their count and solved in batches of bounded size, padded
    with the identity.
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
        # Past a support's last row that row is solved and written again, which is harmless.
        rows = first_rows[batch, None] + members.minimum(rows_each[batch, None] - 1)
        at = rows[:, None, :], columns[:, :, None]
        values = _solve_padded(hessian, rhs[at], columns, real)
        row_at, column_at = (index.expand_as(values)[real] for index in at)
        solution[row_at, column_at] = values[real]

    for_each(solve, _batches(counts))
    return solution


def _batches(counts: Tensor) -> Iterator[Tensor]:
    """Indices of supports, largest first, so many at a time as BATCH_ELEMENTS allows."""
    order = counts.argsort(descending=True)
    order = order[: int(counts.count_nonzero())]
    while len(order):
        size = max(BATCH_ELEMENTS // int(counts[order[0]]) ** 2, 1)
        yield order[:size]
        order = order[size:]


def _solve_padded(hessian: Tensor, rhs: Tensor, columns: Tensor, real: Tensor) -> Tensor:
    """Solutions [batch, width, rows] of the submatrices at `columns`, identity where not `real`."""
    # One matrix at a time: several times faster than one gather of [batch, width, width].
    gathered = torch.stack([hessian.index_select(0, at).index_select(1, at) for at in columns])
    if not real.all():
        gathered *= real[:, :, None] & real[:, None, :]
        gathered.diagonal(dim1=1, dim2=2).add_(~real)
        rhs = rhs * real[:, :, None]
    return torch.cholesky_solve(rhs, factorise(gathered))


def refit_bias(weight: Tensor, bias: Tensor, pruned: Tensor, moments: Moments) -> Tensor:
    """Bias [out] that gives the mean target: W mean(Xd) + b + mean(Rd - R) - V mean(X)."""
    shifted = bias + (weight - pruned) @ moments.mean()
    if (drift := moments.drift_mean()) is not None:
        shifted = shifted + weight @ drift
    if (residual := moments.residual_mean()) is not None:
        shifted = shifted + residual
    return shifted
