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

from typing import ClassVar

import torch
from torch import Tensor

from sparse_engine.pruning.recovery.base import Problem, PrunedLayer, Recovery
from sparse_engine.pruning.recovery.cholesky import factorise
from sparse_engine.pruning.recovery.supports import SupportBatch, for_each_support
from sparse_engine.pruning.statistics.moments import Moments
from sparse_engine.pruning.statistics.system import System


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
        weight = layer.pruned
        unchanged = problem.target is layer.dense and torch.equal(weight, layer.dense)
        if not layer.is_fitted and not unchanged:
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
        del drift  # as large as the Hessian
    if (residual := moments.residual(system.centred)) is not None:
        correction += residual
    if not correction.any():
        return Problem(weight, rhs)
    step = torch.cholesky_solve(correction.T, factorise(system.hessian)).T
    return Problem(weight + step, rhs + correction)


def refit(rhs: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """Solve v_S H_SS = rhs_S for every row on its support S = keep[row].

    Args:
        rhs: [out, in].
        hessian: [in, in], positive definite.
        keep: bool [out, in].

    Returns:
        [out, in], zero outside of the supports.
    """
    solution = torch.zeros_like(rhs)

    def solve(batch: SupportBatch) -> None:
        factor = factorise(batch.submatrices(hessian))
        batch.write(torch.cholesky_solve(batch.read(rhs), factor), solution)

    for_each_support(keep, solve)
    return solution


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
