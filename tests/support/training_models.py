"""A small network, its data and loops for tests of the training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.training import Prune, Pruner


def network() -> nn.Sequential:
    """Three linear layers, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
    )


def batches(count: int = 6, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(rows, 12, generator=generator) for _ in range(count)]
    return [(x, x[:, :3].sin()) for x in inputs]


def squared(model: nn.Module, batch: Any) -> Tensor:
    """The mean squared error."""
    x, y = batch
    loss: Tensor = (model(x) - y).square().mean()
    return loss


def gradual(**options: Any) -> list[Prune]:
    """A recipe with events at steps 2, 4, 6 and 8."""
    return [Prune(**{"sparsity": 0.8, "end": 8, "every": 2, "layers": ("0", "2"), **options})]


def train(pruner: Pruner, optimizer: Any, data: list[Any]) -> list[float]:
    """One step a batch; the losses."""
    losses = []
    for batch in data:
        loss = pruner.loss(batch)
        loss.backward()
        pruner.step(optimizer)
        losses.append(loss.item())
    return losses
