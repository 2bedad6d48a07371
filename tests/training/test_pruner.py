"""Pruner: masks hold in any loop, and a training that stops goes on with the same numbers."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_models import batches, gradual, network, squared, train

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.training import Pruner

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_removed_weights_stay_zero_under_every_optimizer(name: str) -> None:
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    optimizer = OPTIMIZERS[name](model.parameters())
    removed: dict[str, Tensor] = {}
    for batch in batches(24):
        train(pruner, optimizer, [batch])
        for layer in ("0", "2"):
            weight = model.get_submodule(layer).weight.detach()
            if layer in removed:
                assert not weight[removed[layer]].any()  # what was removed never comes back
            removed[layer] = weight == 0
    pruner.finalize()
    assert float(removed["0"].float().mean()) == pytest.approx(0.8, abs=0.01)
    assert model[4].weight.all()


def test_momentum_of_removed_weights_is_cleared() -> None:
    model = network()
    pruner = Pruner(model, gradual(start=3, end=3), loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(pruner, optimizer, batches(4))
    weight = model[0].weight
    assert not optimizer.state[weight]["momentum_buffer"][weight == 0].any()
    assert optimizer.state[weight]["momentum_buffer"][weight != 0].all()


def test_accumulated_gradients_give_the_step_of_one_large_batch() -> None:
    data = batches(2)
    large = tuple(map(torch.cat, zip(*data, strict=True)))
    models = []
    for parts in ([large], data):
        model = network()
        pruner = Pruner(model, gradual(end=None), loss=squared)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for part in parts:
            (pruner.loss(part) / len(parts)).backward()
        pruner.step(optimizer)
        assert pruner.steps == 1
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_several_parameter_groups_and_a_loop_with_its_own_loss() -> None:
    model = network()
    pruner = Pruner(model, gradual(end=4))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2:].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for batch in batches():
        squared(model, batch).backward()
        pruner.step(optimizer)
    assert pruner.sparsity == pytest.approx(0.8, abs=0.01)


def test_bfloat16_autocast_keeps_the_zeros() -> None:
    model = network()
    pruner = Pruner(model, gradual(end=4), loss=squared)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for batch in batches():
        with torch.autocast("cpu", torch.bfloat16):
            loss = pruner.loss(batch)
        loss.backward()
        pruner.step(optimizer)
    assert (model[0].weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("at", [3, 8, 11])
def test_a_training_that_stops_goes_on_with_the_same_numbers(at: int) -> None:
    data = batches(14)

    def start(model: nn.Module) -> tuple[Pruner, torch.optim.Optimizer]:
        recipe = [*gradual(criterion="random"), {"distil": {}}]
        pruner = Pruner(model, recipe, teacher=network(), loss=squared)
        return pruner, torch.optim.AdamW(model.parameters(), lr=0.01)

    whole = network()
    pruner, optimizer = start(whole)
    losses = train(pruner, optimizer, data)
    stopped = network()
    pruner, optimizer = start(stopped)
    before = train(pruner, optimizer, data[:at])
    file = io.BytesIO()
    states = (stopped.state_dict(), optimizer.state_dict(), pruner.state_dict())
    torch.save(states, file)
    file.seek(0)
    model_state, optimizer_state, pruner_state = torch.load(file, weights_only=True)
    again = network()
    pruner, optimizer = start(again)
    again.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    pruner.load_state_dict(pruner_state)
    assert before + train(pruner, optimizer, data[at:]) == losses
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(pruner.finalize().events) == 4


def test_a_state_of_another_recipe_is_refused() -> None:
    state = Pruner(network(), gradual(), loss=squared).state_dict()
    with pytest.raises(InvalidFileError, match="another recipe"):
        Pruner(network(), gradual(sparsity=0.7), loss=squared).load_state_dict(state)
    with pytest.raises(InvalidFileError, match="no state"):
        Pruner(network(), gradual(), loss=squared).load_state_dict({"step": 3})


def test_damaged_states_are_refused() -> None:
    recipe = [{"freeze": {"end": 6}}, {"prune": {"sparsity": 0.5}}, {"regrow": {"end": 8}}]
    state = Pruner(network(), recipe, loss=squared).state_dict()
    good = state["modifiers"]
    for damaged in (
        {"cuts": 5},
        {"modifiers": good[:2]},
        {"modifiers": [{}, *good[1:]]},
        {"modifiers": [{"frozen": 5}, *good[1:]]},
        {"modifiers": [*good[:2], {"done": "x"}]},
        {"step": None},
        {"step": True},
        {"step": 10**30},
        {"reached": 1},
        {"version": torch.zeros(2)},
        {"cuts": torch.zeros(2, 2)},
        {"cuts": [{"structures": torch.zeros(2), "groups": {}}]},
        {"masks": {"0.weight": 5}},
        {"report": {"events": [{"step": 1}]}},
        {"generator": torch.zeros(3)},
    ):
        model = network()
        pruner = Pruner(model, recipe, loss=squared)
        with pytest.raises(InvalidFileError, match=r"damaged|no state of a Pruner|cannot be read"):
            pruner.load_state_dict({**state, **damaged})
        assert all(map(torch.equal, model.parameters(), network().parameters()))
    shapes = {"0.weight": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(InvalidFileError, match="do not fit"):
        Pruner(network(), recipe, loss=squared).load_state_dict(
            {**state, "modifiers": [{"frozen": shapes}, *good[1:]]}
        )


def test_a_pruner_that_could_not_load_a_state_trains_no_longer() -> None:
    recipe = [{"cut": {"sparsity": 0.5, "granularity": "unit"}}]
    model = network()
    pruner = Pruner(model, recipe, loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.1), batches(1))
    state = pruner.state_dict()
    fresh = network()
    pruner = Pruner(fresh, recipe, loss=squared)
    with pytest.raises(InvalidFileError, match="damaged"):
        pruner.load_state_dict({**state, "generator": torch.zeros(3)})
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in network().parameters()]
    with pytest.raises(UsageError, match="could not load a state: make another one"):
        pruner.loss(batches()[0])


@pytest.mark.parametrize("damage", [{"step": "x"}, {"exp_avg": torch.zeros(2)}, {"exp_avg_sq": 5}])
def test_damaged_moments_are_refused(damage: Any) -> None:
    recipe = [{"soft_movement": {"end": 6}}]
    model = network()
    pruner = Pruner(model, recipe, loss=squared)
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.1), batches(2))
    state = pruner.state_dict()
    state["modifiers"][0]["scores"]["adam"]["state"][0] |= damage
    with pytest.raises(InvalidFileError, match=r"damaged|other groups"):
        Pruner(network(), recipe, loss=squared).load_state_dict(state)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: torch.tensor(1.0), "the loss has no gradient"),
        (lambda model, batch: model(batch[0]), r"has shape \[8, 3\]"),
        (lambda model, batch: torch.zeros((), device="meta"), "expected a scalar"),
    ],
)
def test_losses_that_cannot_be_minimised_are_refused(loss: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruner(network(), gradual(), loss=loss).loss(batches()[0])


def test_a_batch_without_values_is_refused() -> None:
    x, y = batches()[0]
    with pytest.raises(UsageError, match="has no values, it is on the meta device"):
        Pruner(network(), gradual(), loss=squared).loss((x.to("meta"), y))


def test_what_is_no_optimizer_or_scaler_is_refused() -> None:
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)

    class Wrapper:
        optimizer: Any

    wrapper = Wrapper()
    wrapper.optimizer = wrapper
    with pytest.raises(UsageError, match=r"give a torch\.optim\.Optimizer"):
        pruner.step(wrapper)
    with pytest.raises(UsageError, match=r"give a torch\.amp\.GradScaler"):
        pruner.step(torch.optim.SGD(model.parameters(), lr=0.1), "scaler")


def _with_weight(weight: nn.Parameter) -> nn.Sequential:
    model = network()
    model[2].weight = weight
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_with_weight(nn.Parameter(torch.eye(24).to_sparse())), "sparse tensor of torch"),
        (_with_weight(nn.Parameter(torch.ones(1, 24).expand(24, 24))), "share memory"),
        (torch.jit.script(network()), r"compiled by torch\.jit"),
    ],
)
def test_weights_that_cannot_be_written_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruner(model, [{"prune": {"sparsity": 0.5}}], loss=squared)


def test_parts_of_one_parameter_are_layers_of_their_own() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(16, 2), "lstm": nn.LSTM(16, 8, bidirectional=True)}
    )

    def loss(model: Any, x: Tensor) -> Tensor:
        y, _ = model["attention"](x, x, x)
        return model["lstm"](y)[0].square().mean()

    recipe = [
        {"prune": {"sparsity": 0.5, "layers": ["attention.k_proj"]}},
        {"prune": {"sparsity": 0.75, "granularity": "4x1", "layers": ["lstm.hh_l0_reverse"]}},
    ]
    pruner = Pruner(model, recipe, loss=loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(pruner, optimizer, [torch.randn(5, 3, 16) for _ in range(3)])
    report = pruner.finalize()
    assert report.sparsity == {"attention.k_proj": 0.5, "lstm.hh_l0_reverse": 0.75}
    zeros = model["attention"].in_proj_weight == 0
    assert zeros[16:32].float().mean() == 0.5
    assert not zeros[:16].any()
    assert not zeros[32:].any()
    assert (model["lstm"].weight_hh_l0_reverse == 0).float().mean() == 0.75
    assert model["lstm"].weight_hh_l0.all()


def test_an_optimizer_without_the_weights_is_refused() -> None:
    model = network()
    pruner = Pruner(model, gradual(), loss=squared)
    other = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    pruner.loss(batches()[0]).backward()
    with pytest.raises(UsageError, match=r"does not hold 0\.weight"):
        pruner.step(other)


def test_events_happen_once_and_the_report_tells_them() -> None:
    model = network()
    pruner = se.Pruner(model, gradual(schedule="linear"), loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(pruner, optimizer, batches(5))
    report = pruner.finalize()
    assert [event.step for event in report.events] == [2, 4]
    assert [round(event.sparsity, 2) for event in report.events] == [0.2, 0.4]
    assert "stopped at step 5 of 8" in report.warnings[0]
    with pytest.raises(UsageError, match="finalized"):
        pruner.loss(batches()[0])


def test_a_loss_that_is_not_finite_stops_with_a_reason() -> None:
    pruner = Pruner(
        network(), gradual(), loss=lambda model, batch: squared(model, batch) * torch.nan
    )
    with pytest.raises(UsageError, match="the loss is nan"):
        pruner.loss(batches()[0])


def test_a_batch_without_any_loss_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing gives a loss"):
        Pruner(network(), gradual()).loss((batches()[0][0],))


@pytest.mark.parametrize("loss", [squared, None])
def test_a_model_without_gradients_is_refused(loss: Any) -> None:
    model = network().requires_grad_(False)
    pruner = Pruner(model, [{"distil": {}}], teacher=network(), loss=loss)
    batch = batches()[0]
    with pytest.raises(UsageError, match=r"call model\.requires_grad_\(True\)"):
        pruner.loss(batch if loss else batch[:1])


@pytest.mark.parametrize(("distils", "count"), [(False, 1), (True, 0)])
def test_evaluation_mode_gives_one_warning_unless_it_distils(distils: bool, count: int) -> None:
    model = nn.Sequential(nn.Dropout(0.5), network()).eval()
    recipe = [{"distil": {}}] if distils else [{"prune": {"sparsity": 0.5}}]
    pruner = Pruner(model, recipe, teacher=network() if distils else None, loss=squared)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches(2):
            pruner.loss(batch)
    assert sum("evaluation mode" in str(one.message) for one in caught) == count


def test_the_report_of_a_recipe_without_pruning_is_not_empty() -> None:
    model = network()
    pruner = Pruner(model, [{"distil": {}}], teacher=network())
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.1), [x for x, _ in batches(2)])
    assert str(pruner.finalize()) == "step      2  nothing was removed"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([{"prune": {"sparsity": 0.5, "layers": ["encoder.*"]}}], "matches no layer; the nearest"),
        ([{"prune": {"sparsity": 0.5, "ignore": ["re:[0-9]"]}}], "layer"),
        ([{"prune": {"sparsity": 0.5, "start": 8, "end": 5}}], "ends at step 5, before it starts"),
        ([{"distil": {"start": "2ep", "end": "1ep"}}], "ends at step 10, before it starts"),
        ({"end": 4, "modifiers": [{"prune": {"sparsity": 0.5, "end": 5}}]}, "after the recipe"),
        ([{"hold": {}}], "prune the model first"),
        ([{"distil": {"outputs": 0}}], "nothing is compared"),
        ([{"distil": {"temperature": 0}}], "temperature"),
        ([{"distill": {}}], "the nearest are distil"),
        ([{"distil": {"hiden": 1}}], "no option 'hiden'; the nearest are hidden"),
        ([{"prune": {"sparsty": 0.5}}], "no option 'sparsty'; the nearest are sparsity"),
        ([{"distil": {5: 1}}], "no option 5"),
        ([{"distil": False}], "the options of distil are no mapping"),
        ([{"distil": {"weight": torch.inf}}], "finite"),
        ([{"distil": {"weight": True}}], "expected no true"),
        ([{"prune": {"sparsity": 0.5, "start": True}}], "start: expected no true"),
        ([{"prune": {"sparsity": 0.5, "start": 10**30}}], r"from 0 to 10\^12"),
        ([{"prune": {"sparsity": 0.5, "start": "9" * 400 + "ep"}}], "give fewer epochs"),
        ([{"prune": {"sparsity": 0.5, "seed": 10**30}}], "seed"),
        ([{"prune": {"sparsity": 0.5}}] * 101, "101 modifiers; at most 100"),
        ({"end": "0ep", "modifiers": [{"distil": {}}]}, "before the first step"),
        ({"version": True, "modifiers": [{"distil": {}}]}, "version True"),
        ("x" * 5000, "no such file"),
        ("a\0b", "no such file"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_anything_changes(
    recipe: Any, message: str
) -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UsageError, match=message) as caught:
        Pruner(model, recipe, teacher=network(), loss=squared, steps_per_epoch=10)
    assert len(str(caught.value).splitlines()) == 1
    assert all(map(torch.equal, before, model.parameters()))
