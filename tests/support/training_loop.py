"""A tiny training, and one that stops in the middle and goes on, for tests of modifiers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_engine.training import Pruner

Data = Sequence[tuple[Tensor, Tensor]]


def network(hidden: int = 24) -> nn.Sequential:
    """Three linear layers, 0, 2 and 4, with fixed random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 3)
    )


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of inputs [8, 12] and labels [8, 3]."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(8, 12, generator=generator) for _ in range(count)]
    return [(x, x[:, :3].sin()) for x in inputs]


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean squared error."""
    return (model(batch[0]) - batch[1]).square().mean()


def adamw(model: nn.Module) -> Optimizer:
    """AdamW with a strong weight decay."""
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def train(pruner: Pruner, optimizer: Optimizer, data: Data) -> list[float]:
    """One step for each batch; returns the losses."""
    losses = []
    for batch in data:
        loss = pruner.loss(batch)
        loss.backward()
        pruner.step(optimizer)
        losses.append(loss.item())
    return losses


def train_and_stop(
    recipe: Any,
    steps: int,
    at: int,
    build: Callable[[], nn.Module] = network,
    optimize: Callable[[nn.Module], Optimizer] = adamw,
    **options: Any,
) -> tuple[nn.Module, list[float], nn.Module, list[float]]:
    """Train in one go, and again with a stop after which everything is made anew.

    Args:
        recipe: for `Pruner`; made anew each time from plain values.
        steps: of the whole training.
        at: the step at which the second training stops.
        build: makes the model.
        optimize: makes its optimizer.
        options: of `Pruner`.

    Returns:
        The model and the losses of each of the two.
    """
    data = batches(steps)
    options = {"loss": squared, **options}
    whole = build()
    losses = train(Pruner(whole, recipe, **options), optimize(whole), data)
    stopped = build()
    pruner, optimizer = Pruner(stopped, recipe, **options), optimize(stopped)
    before = train(pruner, optimizer, data[:at])
    file = io.BytesIO()
    torch.save((pruner.state_dict(), stopped.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    of_pruner, of_model, of_optimizer = torch.load(file, weights_only=True)
    again = build()
    pruner = Pruner(again, recipe, **options)
    pruner.load_state_dict(of_pruner)
    again.load_state_dict(of_model)
    optimizer = optimize(again)
    optimizer.load_state_dict(of_optimizer)
    return whole, losses, again, before + train(pruner, optimizer, data[at:])


def assert_goes_on(recipe: Any, steps: int, at: int, **options: Any) -> None:
    """A training that stops gives the same numbers as one that does not."""
    whole, losses, again, others = train_and_stop(recipe, steps, at, **options)
    assert others == losses
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
