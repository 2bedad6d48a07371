"""Prune: N:M, AC/DC and overrides while training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_models import adamw, assert_goes_on, batches, gradual, network, squared, train

from sparse_engine.errors import UsageError
from sparse_engine.training import Prune, Pruner
from sparse_engine.training.modifiers import prune as modifiers_prune

LAYERS = ("0", "2")


def zeros(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([model.get_submodule(name).weight.flatten() == 0 for name in LAYERS])


def test_nm_is_removed_at_once_and_stays() -> None:
    model = network()
    pruner = Pruner(model, [{"prune": {"granularity": "2:4", "start": 2, "end": 5}}], loss=squared)
    optimizer = adamw(model)
    train(pruner, optimizer, batches(1))
    assert model[0].weight.all()
    train(pruner, optimizer, batches(6))
    groups = model[0].weight.view(24, 3, 4) == 0
    assert (groups.sum(2) == 2).all()
    assert [event.step for event in pruner.finalize().events] == [2]


def test_nm_cannot_be_reached_step_by_step() -> None:
    recipe = [Prune(granularity="2:4", schedule="cubic", end=8)]
    with pytest.raises(UsageError, match="choose one_shot or acdc"):
        Pruner(network(), recipe, loss=squared)
    with pytest.raises(UsageError, match="does not fit 2:4"):
        Pruner(network(), [Prune(granularity="2:4", sparsity=0.75)], loss=squared)


@pytest.mark.parametrize("granularity", ["element", "4x1", "2:4"])
def test_acdc_trains_all_weights_in_dense_phases_and_ends_sparse(granularity: str) -> None:
    model = network()
    options = {"granularity": granularity, "layers": LAYERS, "end": 12}
    recipe = [{"prune": {"sparsity": 0.5, "schedule": "acdc(cycles=2)", **options}}]
    pruner = Pruner(model, recipe, loss=squared)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    shares, masks = [], []
    for batch in batches(16):
        train(pruner, optimizer, [batch])
        shares.append(float(zeros(model).float().mean()))
        masks.append(zeros(model))
    # Events are at 0 (sparse), 3 (dense), 6, 9 and 12; one at step k is seen after k steps.
    assert shares == pytest.approx([0.5] * 3 + [0] * 2 + [0.5] * 4 + [0] * 2 + [0.5] * 5)
    assert not torch.equal(masks[0], masks[-1])  # others were removed after dense phases
    assert pruner.finalize().sparsity == {"0": 0.5, "2": 0.5}


def test_momentum_does_not_move_what_a_dense_phase_releases() -> None:
    """A released weight moves by its gradient alone: by none, if that is zero."""
    model = network()
    recipe = [Prune(sparsity=0.5, schedule="acdc(cycles=1)", layers=LAYERS, start=2, end=6)]
    pruner = Pruner(model, recipe, loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(pruner, optimizer, batches(4))  # sparse from 2, dense from 4
    removed = zeros(model)
    pruner.loss(batches(1)[0]).backward()
    for parameter in model.parameters():
        parameter.grad.zero_()
    pruner.step(optimizer)
    assert torch.equal(zeros(model), removed)
    train(pruner, optimizer, batches(1)[:1])
    # At step 6 the second sparse phase begins; a half is zero again.
    assert float(zeros(model).float().mean()) == pytest.approx(0.5)


def test_overrides_rise_with_the_schedule() -> None:
    model = network()
    recipe = [
        Prune(
            sparsity=0.8,
            schedule="linear",
            end=4,
            every=2,
            layers=LAYERS,
            overrides=({"match": "2", "sparsity": 0.4},),
        )
    ]
    pruner = Pruner(model, recipe, loss=squared)
    optimizer = adamw(model)
    train(pruner, optimizer, batches(2))
    half = [float((model[i].weight == 0).float().mean()) for i in (0, 2)]
    assert half == pytest.approx([0.4, 0.2], abs=0.01)
    train(pruner, optimizer, batches(2))
    assert pruner.finalize().sparsity == pytest.approx({"0": 0.8, "2": 0.4}, abs=0.01)


@pytest.mark.parametrize("at", [2, 5, 7])
def test_acdc_goes_on_after_a_stop(at: int) -> None:
    prune = {"sparsity": 0.5, "schedule": "acdc(cycles=1)", "start": 1, "end": 7}
    assert_goes_on([{"prune": prune}], 10, at)


def test_an_interrupted_event_happens_when_the_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, stopped = network(), network()
    train(Pruner(whole, gradual(), loss=squared), adamw(whole), batches(10))
    pruner, optimizer, data = Pruner(stopped, gradual(), loss=squared), adamw(stopped), batches(10)
    train(pruner, optimizer, data[:3])
    driver = modifiers_prune.prune

    def interrupted(*args: Any, **options: Any) -> Any:
        driver(*args, **options)
        raise KeyboardInterrupt  # after the weights were set to zero, before the masks are taken

    x, y = data[3]
    loss = pruner.loss((x, y))
    loss.backward()
    monkeypatch.setattr(modifiers_prune, "prune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pruner.step(optimizer)
    monkeypatch.setattr(modifiers_prune, "prune", driver)
    optimizer.zero_grad()  # the weights had moved already: the step counts
    train(pruner, optimizer, data[4:])
    for name, expected in whole.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], expected), name
