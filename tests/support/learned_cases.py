"""Small models in float64 on which masks are learned, and a loop that trains them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.training import Pruner


def network() -> nn.Sequential:
    """Two chains of units; 10 x 7 and 6 x 10 do not divide by blocks of 4."""
    torch.manual_seed(0)
    layers = (nn.Linear(7, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 2))
    return nn.Sequential(*layers).double()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs [8, 7] and targets [8, 2]."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(8, 7, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(x, (2 * x[:, :2]).sin()) for x in inputs]


def squared(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def train(pruner: Pruner, optimizer: torch.optim.Optimizer, data: list[Any]) -> list[float]:
    """The losses of one step for each batch."""
    losses = []
    for batch in data:
        loss = pruner.loss(batch)
        loss.backward()
        pruner.step(optimizer)
        losses.append(loss.item())
    return losses
