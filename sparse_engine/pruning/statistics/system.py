"""The linear system of a layer's input: H + lambda I."""

from __future__ import annotations

from torch import Tensor

from sparse_engine.pruning.statistics.moments import Moments

RIDGE = 1e-2  # lambda, relative to the mean of the diagonal of H
ROUNDING = 100  # lambda is at least this many times the rounding error on the diagonal


class System:
    """H + lambda I of one input, which all layers that read the input share.

    Attributes:
        moments: H, D and E.
        centred: whether H is that of the centred inputs.
        hessian: [in, in], H + lambda I.
        ridge: lambda.
    """

    def __init__(self, moments: Moments, centred: bool, is_only_one: bool = False) -> None:
        """`is_only_one`: no other system is made of the moments, so that H need not be copied."""
        self.moments = moments
        self.centred = centred
        self.hessian = (moments.take_hessian if is_only_one else moments.hessian)(centred)
        mean_square = float(self.hessian.diagonal().mean())
        # The centred H of constant inputs consists of rounding errors, which must not be fitted.
        self.ridge = max(RIDGE * mean_square, ROUNDING * moments.rounding()) or 1.0
        self.hessian.diagonal().add_(self.ridge)

    def error(self, weight: Tensor, target: Tensor) -> float:
        """Relative error of the outputs, |(weight - target) X| / |target X|, of weights [out, in].

        The norm is Frobenius'.
        """
        return (self._energy(weight - target) / self._energy(target).clamp_min(1e-30)).sqrt().item()

    def _energy(self, weight: Tensor) -> Tensor:
        """|weight X|^2."""
        full = ((weight @ self.hessian) * weight).sum()
        return (full - self.ridge * weight.square().sum()).clamp_min(0)
