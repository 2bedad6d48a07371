"""Second moments of a layer's inputs, summed batch by batch in float32.

    H = X X^T,  D = (Xd - X) X^T,  E = (Rd - R) X^T

with X [in, tokens] the inputs in the model that is being pruned, Xd those in the dense model, R and
Rd [out, tokens] the residual streams of both. "Centred" means that the mean over the tokens is
subtracted from every row of X, Xd, R and Rd.

The squares of inputs beyond 1e19 overflow float32, and those of inputs below 1e-19 underflow. Such
inputs are divided by a power of two, which is exact. H, D and E are then divided by its square,
which changes neither the solutions of least squares nor the order of scores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps
# Inputs whose largest magnitude lies within 2^-PLAIN_EXPONENT to 2^PLAIN_EXPONENT are not scaled.
PLAIN_EXPONENT = 30


def power_of_two(largest: float) -> float:
    """The divisor of inputs whose largest magnitude is given; 1 where no scaling is needed."""
    exponent = math.frexp(largest)[1] if largest else 0
    return 1.0 if abs(exponent) <= PLAIN_EXPONENT else math.ldexp(1.0, exponent)


class InputNorms:
    """Sum of squares of each input in float64, for criteria that need only norms."""

    def __init__(self) -> None:
        self.count = 0
        self._squares: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add the tokens x [tokens, in]."""
        squares = x.double().square().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares
        self.count += x.shape[0]

    def norms(self) -> Tensor:
        """sqrt(sum x^2), float32 [in], divided by a power of two where its square overflows."""
        assert self._squares is not None
        norms = self._squares.sqrt()
        return (norms / power_of_two(float(norms.max()))).float()


class Moments:
    """H, D and E of one input.

    Sums are taken about the mean of the first batch, which avoids cancellation.

    Attributes:
        count: number of tokens.
        scale: the power of two that inputs are divided by before they are summed.
    """

    def __init__(self) -> None:
        self.count = 0
        self.scale = 1.0
        self._shift: Tensor  # [in]
        self._x: Tensor  # [in], sum of x - shift
        self._xx: Tensor  # [in, in], sum of (x - shift)(x - shift)^T
        self._drift = _CrossMoment()
        self._residual = _CrossMoment()

    def add(
        self, x: Tensor, dense: Tensor | None = None, residual_drift: Tensor | None = None
    ) -> None:
        """Add tokens.

        Args:
            x: [tokens, in], inputs in the model that is being pruned.
            dense: [tokens, in], inputs in the dense model.
            residual_drift: [tokens, out], Rd - R.
        """
        x = x.float()
        self._fit_scale(x)
        x = x / self.scale if self.scale != 1 else x
        if self.count == 0:
            self._shift = x.mean(0)
            self._x = torch.zeros_like(self._shift)
            self._xx = x.new_zeros(x.shape[1], x.shape[1])
        shifted = x - self._shift
        self._x += shifted.sum(0)
        self._xx.addmm_(shifted.T, shifted)
        self.count += x.shape[0]
        if dense is not None:
            self._drift.add(dense.float() / self.scale - x, shifted)
        if residual_drift is not None:
            self._residual.add(residual_drift.float() / self.scale, shifted)

    def _fit_scale(self, x: Tensor) -> None:
        """Increase the scale, and rescale the sums, if x is larger than everything before it."""
        if not x.numel():
            return
        scale = power_of_two(float(x.abs().max()))
        if self.count == 0:
            self.scale = scale
        elif scale > self.scale:
            factor = self.scale / scale
            self._shift *= factor
            self._x *= factor
            self._xx *= factor**2
            self._drift.rescale(factor)
            self._residual.rescale(factor)
            self.scale = scale

    def mean(self) -> Tensor:
        """Mean input in the pruned model, [in]."""
        return self._mean() * self.scale

    def _mean(self) -> Tensor:
        return self._shift + self._x / self.count

    def drift_mean(self) -> Tensor | None:
        """Mean of Xd - X, [in]; None if no dense inputs were added."""
        mean = self._drift.mean(self.count)
        return None if mean is None else mean * self.scale

    def residual_mean(self) -> Tensor | None:
        """Mean of Rd - R, [out]; None if there is no residual stream."""
        mean = self._residual.mean(self.count)
        return None if mean is None else mean * self.scale

    def hessian(self, centred: bool) -> Tensor:
        """H, [in, in]."""
        return self._to_hessian(self._xx.clone(), centred)

    def take_hessian(self, centred: bool) -> Tensor:
        """H in the memory of the sum, which cannot be read again."""
        sums = self._xx
        del self._xx
        return self._to_hessian(sums, centred)

    def _to_hessian(self, sums: Tensor, centred: bool) -> Tensor:
        """H in the memory of a sum about the shift."""
        offset = self._x / self.count
        sums.addr_(offset, offset, alpha=-self.count)
        return sums if centred else sums.addr_(self._mean(), self._mean(), alpha=self.count)

    def rounding(self) -> float:
        """Upper bound of the rounding error on the diagonal of a centred H, as a mean."""
        return self.count * float((self._mean() * EPSILON).square().mean())

    def drift(self, centred: bool) -> Tensor | None:
        """D, [in, in]; None if no dense inputs were added."""
        return self._drift.product(self.count, self._x, self._mean(), centred)

    def residual(self, centred: bool) -> Tensor | None:
        """E, [out, in]; None if there is no residual stream."""
        return self._residual.product(self.count, self._x, self._mean(), centred)


class _CrossMoment:
    """Sum of y x^T, where y [tokens, rows] belongs to the same tokens as the inputs x."""

    def __init__(self) -> None:
        self._y: Tensor | None = None  # [rows], sum of y
        self._yx: Tensor  # [rows, in], sum of y (x - shift)^T

    def add(self, y: Tensor, shifted: Tensor) -> None:
        if self._y is None:
            self._y = y.new_zeros(y.shape[1])
            self._yx = y.new_zeros(y.shape[1], shifted.shape[1])
        self._y += y.sum(0)
        self._yx.addmm_(y.T, shifted)

    def rescale(self, factor: float) -> None:
        """Multiply what x and y have contributed so far by `factor`."""
        if self._y is not None:
            self._y *= factor
            self._yx *= factor**2

    def mean(self, count: int) -> Tensor | None:
        return None if self._y is None else self._y / count

    def product(self, count: int, x: Tensor, mean: Tensor, centred: bool) -> Tensor | None:
        if self._y is None:
            return None
        product = torch.addr(self._yx, self._y, x / count, alpha=-1)
        return product if centred else product.addr_(self._y, mean)
