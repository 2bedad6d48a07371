"""Hard-concrete gates: random numbers in [0, 1] that are 0 or 1 often, with a gradient.

With u uniform in (0, 1) and a parameter a, which is log alpha in the paper,

    s = sigmoid((log u - log(1 - u) + a) / BETA)
    z = min(1, max(0, s (ZETA - GAMMA) + GAMMA))
    P(z > 0) = sigmoid(a - BETA log(-GAMMA / ZETA))

Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv:1712.01312.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SHIFT = BETA * math.log(-GAMMA / ZETA)


def sampled(a: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Gates z of noise u, and their derivatives dz/da.

    Args:
        a: parameters, any shape.
        u: uniform in (0, 1), of the same shape.
    """
    s = ((u.log() - (-u).log1p() + a) / BETA).sigmoid()
    stretched = s * (ZETA - GAMMA) + GAMMA
    inside = (stretched > 0) & (stretched < 1)
    return stretched.clamp(0, 1), s * (1 - s) / BETA * (ZETA - GAMMA) * inside


def expected(a: Tensor) -> Tensor:
    """The gates without noise, which the trained model has."""
    return (a.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(a: Tensor) -> tuple[Tensor, Tensor]:
    """P(z > 0) and its derivative with respect to a."""
    p = (a - SHIFT).sigmoid()
    return p, p * (1 - p)


def noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in (0, 1), drawn on the CPU, so that all processes draw the same."""
    tiny = torch.finfo(torch.float32).eps
    u = torch.rand(like.shape, generator=generator).clamp(tiny, 1 - tiny)
    return u.to(like)
