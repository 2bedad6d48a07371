"""Second moments of a layer's inputs, summed batch by batch in float32.

Squares of inputs beyond 1e19 overflow float32 and those below 1e-19 vanish, so that inputs which
are far from 1 are divided by a power of two, which is exact. All of H, D and E are then divided by
its square, which changes no least-squares solution and no order of scores.

H = X X^T,  D = (Xd - X) X^T,  E = (Rd - R) X^T  with X [in, tokens] the inputs in the model that
is being pruned, Xd those in the dense model, R and Rd the residual streams of both. "Centred"
means: every row of X, Xd, R and Rd less its mean over the tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps
PLAIN = 30  # inputs whose largest magnitude is within 2^-PLAIN to 2^PLAIN are left as they are


def power_of_two(largest: float) -> float:
    """The power of two to divide inputs by whose largest magnitude is given; 1 for plain ones."""
    exponent = math.frexp(largest)[1] if largest else 0
    return 1.0 if abs(exponent) <= PLAIN else math.ldexp(1.0, exponent)


class InputNorms:
    """Sum of squares per input in float64; all that some criteria need."""

    def __init__(self) -> None:
        self.count = 0
        self._squares: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Count tokens x [tokens, in]."""
        squares = x.double().square().sum(0)
        self._squares = squares if self._squares is None else self._squares + squares
        self.count += x.shape[0]

    def norms(self) -> Tensor:
        """sqrt(sum x^2), float32 [in], divided by a power of two where its square would overflow."""
        assert self._squares is not None
        norms = self._squares.sqrt()
        return (norms / power_of_two(float(norms.max()))).float()


class Moments:
    """H, D and E of one input; sums are taken about the first batch's mean against cancellation."""

    def __init__(self) -> None:
        self.count = 0
        self.scale = 1.0  # what inputs are divided by: the sums below are of divided ones
        self._shift: Tensor  # [in]
        self._x: Tensor  # [in] sum of x - shift
        self._xx: Tensor  # [in, in] sum of (x - shift)(x - shift)^T
        self._drift = _Cross()
        self._residual = _Cross()

    def add(
        self, x: Tensor, dense: Tensor | None = None, residual_drift: Tensor | None = None
    ) -> None:
        """Count tokens: x and dense [tokens, in], residual_drift = Rd - R [tokens, out]."""
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
        """Divide by more, and what is summed already as well, if x is larger than all before it."""
        if not x.numel():
            return
        scale = power_of_two(float(x.abs().max()))
        if self.count == 0:
            self.scale = scale
        elif scale > self.scale:
            part = self.scale / scale
            self._shift *= part
            self._x *= part
            self._xx *= part**2
            self._drift.multiply(part)
            self._residual.multiply(part)
            self.scale = scale

    def mean(self) -> Tensor:
        """Mean input in the pruned model, [in]."""
        return self._mean() * self.scale

    def _mean(self) -> Tensor:
        return self._shift + self._x / self.count

    def drift_mean(self) -> Tensor | None:
        """Mean of Xd - X, [in]; None if no dense inputs were given."""
        mean = self._drift.mean(self.count)
        return None if mean is None else mean * self.scale

    def residual_mean(self) -> Tensor | None:
        """Mean of Rd - R, [out]; None if there is no residual stream."""
        mean = self._residual.mean(self.count)
        return None if mean is None else mean * self.scale

    def hessian(self, centred: bool) -> Tensor:
        """H, [in, in]."""
        offset = self._x / self.count
        hessian = self._xx - self.count * torch.outer(offset, offset)
        if not centred:
            hessian += self.count * torch.outer(self._mean(), self._mean())
        return hessian

    def rounding(self) -> float:
        """What float32 leaves on the diagonal of a centred H, at most, where inputs are constant."""
        return self.count * float((self._mean() * EPSILON).square().mean())

    def drift(self, centred: bool) -> Tensor | None:
        """D, [in, in]; None if no dense inputs were given."""
        return self._drift.product(self.count, self._x, self._mean(), centred)

    def residual(self, centred: bool) -> Tensor | None:
        """E, [out, in]; None if there is no residual stream."""
        return self._residual.product(self.count, self._x, self._mean(), centred)


class _Cross:
    """Sum of y x^T for some y [tokens, rows] beside the inputs."""

    def __init__(self) -> None:
        self._y: Tensor | None = None  # [rows]
        self._yx: Tensor

    def add(self, y: Tensor, shifted: Tensor) -> None:
        if self._y is None:
            self._y = y.new_zeros(y.shape[1])
            self._yx = y.new_zeros(y.shape[1], shifted.shape[1])
        self._y += y.sum(0)
        self._yx.addmm_(y.T, shifted)

    def multiply(self, part: float) -> None:
        """What is summed so far, with y and x in units that are 1 / part as large."""
        if self._y is not None:
            self._y *= part
            self._yx *= part**2

    def mean(self, count: int) -> Tensor | None:
        return None if self._y is None else self._y / count

    def product(self, count: int, x: Tensor, mean: Tensor, centred: bool) -> Tensor | None:
        if self._y is None:
            return None
        product = self._yx - torch.outer(self._y, x / count)
        return product if centred else product + torch.outer(self._y, mean)
