"""Learning rate: the factor of every step, against tables that were computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_models import assert_goes_on, batches, network, squared, train

from sparse_engine.errors import UsageError
from sparse_engine.training import LearningRate, Prune, Pruner

C = 0.5**0.5  # cos 45 degrees


class Look(torch.optim.SGD):
    """Records the rates of its steps."""

    def step(self, closure: Any = None) -> Any:
        self.seen = [*getattr(self, "seen", []), [group["lr"] for group in self.param_groups]]
        return super().step(closure)


def rates(*recipe: Any, steps: int, scheduler: Any = None) -> list[float]:
    """The factors of the steps of a training."""
    model = network()
    pruner = Pruner(model, list(recipe), loss=squared)
    groups = [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[2:].parameters()}]
    optimizer = Look(groups, lr=0.5)
    own = None if scheduler is None else scheduler(optimizer)
    for batch in batches(steps):
        train(pruner, optimizer, [batch])
        if own is not None:
            own.step()
    if own is None:
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    assert all(b == pytest.approx(a / 2) for a, b in optimizer.seen)
    return [a for a, _ in optimizer.seen]


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"factor": 0.1, "start": 1, "end": 3}, [1, 0.1, 0.1, 1, 1, 1]),
        ({"schedule": "linear", "end": 4}, [1, 0.75, 0.5, 0.25, 1]),
        ({"schedule": "linear", "factor": 2, "final": 1, "end": 4}, [2, 1.75, 1.5, 1.25, 1]),
        ({"schedule": "cosine", "end": 4}, [1, (1 + C) / 2, 0.5, (1 - C) / 2, 1]),
        ({"schedule": "linear", "warmup": 2, "end": 6}, [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "constant", "warmup": 1}, [0.5, 1, 1]),
        ({"schedule": "linear", "restart": 2, "end": 5}, [1, 0.5, 1, 0.5, 1]),
        ({"schedule": "linear", "start": 1, "restart": 2, "end": 5}, [1, 1, 0.5, 1, 0.5, 1]),
    ],
)
def test_factors(options: dict[str, Any], factors: list[float]) -> None:
    found = rates(LearningRate(**options), steps=len(factors))
    assert found == pytest.approx(factors)


def test_cycles_restart_at_every_pruning_event_and_the_last_is_longer() -> None:
    prune = Prune(sparsity=0.8, schedule="linear", start=1, end=5, every=2)
    found = rates(prune, LearningRate(schedule="linear", restart="events", end=9), steps=9)
    assert found == pytest.approx([1, 1, 0.5, 1, 0.5, 1, 0.75, 0.5, 0.25])


def test_rewinding_replays_the_end_of_the_first_pass() -> None:
    prune = Prune(sparsity=0.8, schedule="multi_step(levels=2)", start=4, end=6)
    rewind = LearningRate(schedule="linear", restart="events", rewind=2, end=9)
    found = rates(rewind, prune, steps=9)
    # A schedule of 4 steps; after the events at 4 and 6 it goes on from its step 2.
    assert found == pytest.approx([1, 0.75, 0.5, 0.25, 0.5, 0.25, 0.5, 0.25, 0])


def test_several_factors_and_a_scheduler_of_the_caller_are_multiplied() -> None:
    def halving(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    recipe = [LearningRate(factor=0.1, end=2), LearningRate(factor=3, start=1, end=3)]
    assert rates(*recipe, steps=4, scheduler=halving) == pytest.approx([0.1, 0.15, 0.75, 0.125])


def test_modifiers_see_the_rate_of_the_step_after_it() -> None:
    seen = []

    class See(Prune):
        def after_step(self, training: Any) -> None:
            seen.append(training.optimizer.param_groups[0]["lr"])

    rates(See(sparsity=0.5), LearningRate(factor=0.25, end=1), steps=2)
    assert seen == [0.25, 1]


@pytest.mark.parametrize("at", [1, 3, 5])
def test_it_goes_on_after_a_stop(at: int) -> None:
    recipe = [
        {"prune": {"sparsity": 0.5, "end": 4, "every": 2}},
        {"learning_rate": {"schedule": "linear", "restart": "events", "end": 8}},
    ]
    assert_goes_on(recipe, 8, at)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "without an end"),
        ({"restart": 0, "end": 4}, "less than one step"),
        ({"rewind": 2, "end": 4}, "rewind needs restart"),
        ({"restart": "events", "end": 4}, "no modifier prunes"),
        ({"restart": 2, "rewind": 2, "end": 6}, "rewind is step 2 of a schedule of 2"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruner(network(), [LearningRate(**options)], loss=squared)


def test_a_restart_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError, match="neither events, nor steps"):
        Pruner(network(), [{"learning_rate": {"restart": "often", "end": 4}}], loss=squared)


def test_an_optimizer_without_rates_is_refused() -> None:
    model = network()
    pruner = Pruner(model, [LearningRate(factor=0.5)], loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    pruner.loss(batches(1)[0]).backward()
    with pytest.raises(UsageError, match="computes its own learning rates"):
        pruner.step(optimizer)
