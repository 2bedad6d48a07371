"""Cut: what is refused, and what an error leaves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from training_models import adamw, batches, network, squared, train

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.training import Cut, Hold, Movement, Prune, Pruner

UNITS = {"granularity": "unit(keep=2)", "layers": ["0", "2"]}


def test_an_optimizer_of_the_whole_model_is_refused_after_a_restart() -> None:
    recipe = [{"cut": {**UNITS, "sparsity": 0.5}}]
    model = network()
    pruner = Pruner(model, recipe, loss=squared)
    train(pruner, adamw(model), batches(1))
    again = network()
    other = Pruner(again, recipe, loss=squared)
    optimizer = adamw(again)
    other.load_state_dict(pruner.state_dict())
    again.load_state_dict(model.state_dict())
    other.loss(batches(1)[0]).backward()
    with pytest.raises(UsageError, match="load the state of the Pruner first"):
        other.step(optimizer)


def test_states_that_do_not_fit_are_refused() -> None:
    recipe = [{"cut": {**UNITS, "sparsity": 0.5}}]
    pruner = Pruner(network(), recipe, loss=squared)
    pruner.loss(batches(1)[0])
    state = pruner.state_dict()
    [cut] = state["cuts"]
    for groups in ({"0": torch.tensor([2, 1])}, {"0": torch.tensor([0.5])}, {"0": [1]}):
        broken = {**state, "cuts": [{**cut, "groups": groups}]}
        with pytest.raises(InvalidFileError, match="no ascending groups"):
            Pruner(network(), recipe, loss=squared).load_state_dict(broken)
    for groups in ({"0": torch.tensor([24])}, {"nine": torch.tensor([0])}):
        broken = {**state, "cuts": [{**cut, "groups": groups}]}
        with pytest.raises(InvalidFileError, match="as it was before the training"):
            Pruner(network(), recipe, loss=squared).load_state_dict(broken)
    for structures, message in ((["tree"], "no structures"), (["unit(x=2)"], "cannot be read")):
        broken = {**state, "cuts": [{**cut, "structures": structures}]}
        with pytest.raises(InvalidFileError, match=message):
            Pruner(network(), recipe, loss=squared).load_state_dict(broken)


def test_an_error_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    pruner = Pruner(model, [Cut(sparsity=0.5, start=1, **UNITS)], loss=squared)
    optimizer = adamw(model)
    before = copy.deepcopy(model.state_dict())

    def fail(self: object, model: nn.Module) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparse_engine.training.change.Numbered.change", fail)
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(KeyboardInterrupt):
        train(pruner, optimizer, batches(2))
    assert all(torch.equal(model.state_dict()[name], of) for name, of in before.items())
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == set(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([Prune(sparsity=0.5), Cut(sparsity=0.5, granularity="unit", start=2)], "acts at step 0"),
        ([Prune(sparsity=0.5), Cut(sparsity=0.5, **UNITS)], "set to zero already"),
        ([Cut(sparsity=0.5, granularity="head")], "no head to remove"),
        ([Cut(sparsity=0.5, granularity="unit", layers=("9",))], "matches no layer"),
        ([Cut(sparsity=0.5, granularity="unit", criterion="fisher")], "needs calibration"),
        ([Movement(sparsity=0.5, end=4), Cut(sparsity=0.5, granularity="unit")], "cannot follow"),
        ([Hold(), Cut(sparsity=0.5, granularity="unit")], "hold cannot follow cut"),
    ],
)
def test_what_does_not_fit_is_refused(recipe: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruner(network(), recipe, loss=squared).loss(batches(1)[0])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_engine.training.training.Training.is_parallel", True)
    with pytest.raises(UsageError, match="DistributedDataParallel"):
        Pruner(network(), [Cut(sparsity=0.5, granularity="unit")], loss=squared)
