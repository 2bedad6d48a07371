"""A small network, its data and loops for tests of the training."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.training import Prune, Pruner


def network(hidden: int = 24) -> nn.Sequential:
    """Three linear layers, 0, 2 and 4, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 3)
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


def adamw(model: nn.Module) -> Optimizer:
    """AdamW with a strong weight decay."""
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def assert_goes_on(
    recipe: Any, steps: int, at: int, build: Callable[[], nn.Module] = network, **options: Any
) -> None:
    """A training that stops, after which everything is made anew, gives the same numbers.

    Args:
        recipe: plain values for `Pruner`.
        steps: of the whole training.
        at: the step at which it stops.
        build: makes the model.
        options: of `Pruner`.
    """
    data = batches(steps)
    options = {"loss": squared, **options}
    whole = build()
    losses = train(Pruner(whole, recipe, **options), adamw(whole), data)
    stopped = build()
    pruner, optimizer = Pruner(stopped, recipe, **options), adamw(stopped)
    before = train(pruner, optimizer, data[:at])
    file = io.BytesIO()
    torch.save((pruner.state_dict(), stopped.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    of_pruner, of_model, of_optimizer = torch.load(file, weights_only=True)
    again = build()
    pruner = Pruner(again, recipe, **options)
    pruner.load_state_dict(of_pruner)
    again.load_state_dict(of_model)
    optimizer = adamw(again)
    optimizer.load_state_dict(of_optimizer)
    assert before + train(pruner, optimizer, data[at:]) == losses
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
