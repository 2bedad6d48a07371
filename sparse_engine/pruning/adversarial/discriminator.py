"""A discriminator: tells the features of the dense model from those of the masked one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 128
RATE = 1e-3  # of Adam


class Discriminator:
    """Two linear layers over the features of one token, trained by Adam.

    Args:
        features: how many features a token has.
        scale: root mean square of the dense features, by which all are divided.
        generator: of the initial weights.
    """

    def __init__(self, features: int, scale: float, generator: torch.Generator) -> None:
        self._scale = max(scale, 1e-12)
        shapes = ((HIDDEN, features), (HIDDEN,), (1, HIDDEN), (1,))
        self._parameters = [
            nn.Parameter(torch.randn(shape, generator=generator) / shape[-1] ** 0.5)
            for shape in shapes
        ]
        self._adam = torch.optim.Adam(self._parameters, lr=RATE)

    def __call__(self, rows: Tensor) -> Tensor:
        """How much rows [tokens, features] look like dense ones, as logits [tokens]."""
        first, first_bias, last, last_bias = (p.to(rows.device) for p in self._parameters)
        hidden = F.leaky_relu(F.linear(rows / self._scale, first, first_bias), 0.2)
        return F.linear(hidden, last, last_bias)[:, 0]

    def learn(self, dense: Tensor, masked: Tensor) -> None:
        """One step towards telling dense rows from masked ones."""
        logits = self(torch.cat([dense, masked]).detach())
        truth = torch.cat([torch.ones(len(dense)), torch.zeros(len(masked))]).to(logits.device)
        loss = F.binary_cross_entropy_with_logits(logits, truth)
        gradients = torch.autograd.grad(loss, self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._adam.step()


def looks_dense(logits: Tensor) -> Tensor:
    """-log D, the loss of the generator: 0 if all rows are taken for dense ones."""
    return F.softplus(-logits).mean()
