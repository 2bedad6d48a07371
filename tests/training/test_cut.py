"""Cut: structures are taken out while training; the optimizer and the masks follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_models import adamw, assert_goes_on, batches, network, squared, train

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.training import Cut, Pruner

UNITS = {"granularity": "unit(keep=2)", "layers": ["0", "2"]}


class Attention(nn.Module):
    """An encoder with torch's attention, whose joint projection is split when heads go."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 4, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x[:, None]))[:, 0]


def attention(layers: int = 2) -> Attention:
    torch.manual_seed(0)
    return Attention(layers)


class Recurrent(nn.Module):
    """An LSTM whose units are read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 3, 4).transpose(0, 1))[0][-1])


def recurrent() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent()


def widths(model: nn.Module) -> list[int]:
    return [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]


def test_the_share_is_that_of_the_first_groups() -> None:
    model = network(hidden=23)
    cut = {**UNITS, "sparsity": 0.6, "schedule": "linear", "end": 6, "every": 2}
    pruner = Pruner(model, [{"cut": cut}], loss=squared)
    optimizer = adamw(model)
    found = [widths(model)]
    for batch in batches(8):
        train(pruner, optimizer, [batch])
        found.append(widths(model))
    left = [23, 23, 18, 18, 14, 14, 9, 9, 9]  # 23 (1 - 0.2 k), rounded
    assert found == [[count, count, 3] for count in left]
    texts = [event.text for event in pruner.finalize().events]
    assert texts == [f"{count} of 46 units are left" for count in (36, 28, 18)]


def test_sites_that_compete_lose_the_share_together() -> None:
    model = network(hidden=20)
    cut = {**UNITS, "sparsity": 0.6, "schedule": "multi_step(levels=3)", "end": 4}
    pruner = Pruner(model, [{"cut": {**cut, "allocator": "raw"}}], loss=squared)
    optimizer = adamw(model)
    found = []
    for batch in batches(5):
        train(pruner, optimizer, [batch])
        found.append(sum(widths(model)[:2]))
    assert found == [32, 24, 24, 16, 16]


@pytest.mark.parametrize("optimize", ["adamw", "sgd"])
def test_it_equals_cutting_by_hand_with_state_that_is_sliced(optimize: str) -> None:
    """Train, cut with se.prune, slice the optimizer's state by hand, and train on."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        if optimize == "adamw":
            return adamw(model)
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    data = batches(8)
    model = network()
    cut = {"sparsity": 0.5, "start": 4, "granularity": "unit(keep=2)", "layers": ["0"]}
    pruner = Pruner(model, [{"cut": cut}], loss=squared)
    losses = train(pruner, make(model), data)

    other = network()
    optimizer = make(other)
    expected = []
    for batch in data[:4]:
        expected.append(squared(other, batch))
        expected[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    old = dict(other.named_parameters())
    report = se.prune(other, 0.5, "unit(keep=2)", "magnitude", layers=["0"])
    kept = torch.tensor(report.sites[0].kept)
    fresh = make(other)
    for name, parameter in other.named_parameters():
        state = optimizer.state[old[name]]
        rows, columns = name.startswith("0"), name == "2.weight"
        fresh.state[parameter] = {
            key: value[kept] if rows and value.dim() else value[:, kept] if columns and value.dim()
            else value
            for key, value in state.items()
        }  # fmt: skip
    for batch in data[4:]:
        expected.append(squared(other, batch))
        expected[-1].backward()
        fresh.step()
        fresh.zero_grad()
    assert losses == [loss.item() for loss in expected]
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_state_of_split_projections_is_that_of_their_weights(sparsity: float) -> None:
    """Elements are recognised by values that were written into the state beforehand."""
    model = attention()
    cut = {"sparsity": sparsity, "granularity": ["head", "unit(keep=2)"], "start": 2}
    pruner = Pruner(model, [{"cut": cut}], loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=1.0)
    train(pruner, optimizer, batches(1))
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"].copy_(parameter)
    pruner.loss(batches(1)[0]).backward()
    for parameter in model.parameters():
        parameter.grad.zero_()
    pruner.step(optimizer)
    assert model.encoder.layers[0].self_attn.q_proj.out_features == 12 * (1 - sparsity)
    parameters = list(model.parameters())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in parameters]
    for parameter in parameters:
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], parameter)
    assert len(optimizer.state) == len(parameters)


def test_units_of_a_recurrent_network_and_groups_of_an_optimizer() -> None:
    model = recurrent()
    cut = {"sparsity": 0.5, "granularity": "unit(keep=2, readers='lstm: head')", "start": 3}
    pruner = Pruner(model, [{"cut": cut}], loss=squared)
    foreign = nn.Parameter(torch.ones(2))
    groups = [
        {"params": [foreign, *model.head.parameters()], "lr": 0.1},
        {"params": model.lstm.parameters()},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    train(pruner, optimizer, batches(5))
    assert model.lstm.hidden_size == 10
    first, second = (group["params"] for group in optimizer.param_groups)
    assert [id(p) for p in first] == [id(foreign), *map(id, model.head.parameters())]
    assert [id(p) for p in second] == [*map(id, model.lstm.parameters())]
    assert optimizer.state[model.head.weight]["step"] == 5


class TextCNN(nn.Module):
    """Two convolutions with a norm between them, the maximum over time, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(3, 16, 2), nn.BatchNorm1d(16)
        self.second, self.head = nn.Conv1d(16, 12, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x.view(-1, 4, 3).transpose(1, 2))).relu()
        return self.head(self.second(y).amax(2))


def test_filters_with_norms_take_their_state_along() -> None:
    torch.manual_seed(0)
    model = TextCNN()
    structure = "filter(readers='first: norm second; second: head')"
    recipe = [{"cut": {"sparsity": 0.25, "granularity": structure, "start": 1}}]
    pruner = Pruner(model, recipe, loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=1.0)
    model.zero_grad()
    squared(model, batches(1)[0]).backward()
    optimizer.step()
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"].copy_(parameter)
        parameter.grad.zero_()
    pruner.step(optimizer)
    assert model.second.weight.shape == (9, 12, 2)
    assert model.norm.running_mean.shape == (12,)
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], parameter)


@pytest.mark.parametrize("allocator", ["uniform", "raw"])
def test_one_cut_is_that_of_prune(allocator: str) -> None:
    model, other = attention(), attention()
    inputs = [x for x, _ in batches(4)]
    options = {"criterion": "obs", "recovery": "least_squares", "allocator": allocator}
    cut = Cut(sparsity=0.5, granularity=["head", "unit(keep=2)"], **options)
    Pruner(model, [cut], loss=squared, calibration=inputs).loss(batches(1)[0])
    se.prune(other, 0.5, ["head", "unit(keep=2)"], calibration=inputs, **options)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_layers_go_and_take_their_state_along() -> None:
    model = attention(layers=4)
    cut = {"sparsity": 0.5, "granularity": "layer", "criterion": "random"}
    recipe = [{"cut": {**cut, "schedule": "multi_step(levels=2)", "start": 2, "end": 4}}]
    pruner = Pruner(model, recipe, loss=squared, calibration=[x for x, _ in batches(2)])
    optimizer = adamw(model)
    counts = []
    for batch in batches(6):
        train(pruner, optimizer, [batch])
        counts.append(len(model.encoder.layers))
    assert counts == [4, 3, 3, 2, 2, 2]
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    assert held == [id(p) for p in model.parameters()]
    assert {id(p) for p in optimizer.state} == set(held)


def test_what_is_left_is_pruned_afterwards() -> None:
    model = attention()
    recipe = [
        {"cut": {"sparsity": 0.5, "granularity": ["head", "unit(keep=2)"], "end": 2, "every": 1}},
        {"prune": {"sparsity": 0.5, "granularity": "2x1", "start": 2, "end": 5, "every": 1}},
        {"freeze": {"share": 0.5, "end": 4}},
        {"learning_rate": {"schedule": "linear", "restart": "events", "end": 8}},
    ]
    pruner = Pruner(model, recipe, loss=squared)
    train(pruner, adamw(model), batches(8))
    report = pruner.finalize()
    assert model.encoder.layers[1].linear1.out_features == 12
    assert report.sparsity["encoder.layers.0.self_attn.q_proj"] == 0.5
    weight = model.encoder.layers[0].self_attn.q_proj.weight
    assert (weight.view(3, 2, 12) == 0).all(1).sum() == 18


def test_a_cut_before_the_first_step_reaches_an_optimizer_that_was_made_before() -> None:
    results = []
    for loop in ("loss", "step"):
        model = network()
        pruner = Pruner(model, [Cut(sparsity=0.5, **UNITS)], loss=squared)
        optimizer = adamw(model)
        data = batches(3)
        if loop == "step":  # the loss of the first batch is that of the whole model
            squared(model, data[0]).backward()
            before = model[0].weight.detach().clone()
            gradient = model[0].weight.grad.clone()
            pruner.step(optimizer)
            rows = [i for i in range(24) if (before[i] - model[0].weight).abs().sum(1).min() < 0.3]
            assert len(rows) == 12
            assert gradient[rows].abs().sum() > 0
            data = data[1:]
        train(pruner, optimizer, data)
        held = {id(p) for p in optimizer.param_groups[0]["params"]}
        assert held == {id(p) for p in model.parameters()}
        results.append(optimizer.state[model[0].weight]["step"].item())
    assert results == [3, 3]


def test_state_of_other_shapes_begins_anew() -> None:
    model = network()
    pruner = Pruner(model, [Cut(sparsity=0.5, start=2, **UNITS)], loss=squared)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    train(pruner, optimizer, batches(2))
    assert model[0].weight not in optimizer.state
    assert optimizer.state[model[4].bias]["step"] == 2  # it was not changed
    train(pruner, optimizer, batches(2))
    assert optimizer.state[model[0].weight]["step"] == 2


RECIPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "units": (
        network,
        [
            {"cut": {**UNITS, "sparsity": 0.5, "end": 4, "every": 2}},
            {"prune": {"sparsity": 0.5, "start": 5}},
        ],
        {},
    ),
    "heads": (attention, [{"cut": {"sparsity": 0.5, "granularity": "head", "start": 3}}], {}),
    "layers": (
        attention,
        [{"cut": {"sparsity": 0.5, "granularity": "layer", "criterion": "random", "start": 2}}],
        {"calibration": [x for x, _ in batches(1)]},
    ),
}


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("name", RECIPES)
def test_a_training_that_stops_goes_on(name: str, at: int) -> None:
    build, recipe, options = RECIPES[name]
    assert_goes_on(recipe, 8, at, build=build, **options)


@pytest.mark.parametrize("granularity", ["head", "layer"])
def test_inner_states_are_distilled_after_a_cut(granularity: str) -> None:
    model, dense = attention(3), attention(3)
    cut = {"granularity": granularity, "sparsity": 0.5, "start": 2}
    criterion = "random" if granularity == "layer" else "magnitude"
    recipe = [{"cut": {**cut, "criterion": criterion}}, {"distil": {"hidden": 1.0}}]
    inputs = [x for x, _ in batches(4)]
    pruner = Pruner(model, recipe, teacher=dense, calibration=inputs)
    optimizer = adamw(model)
    losses = []
    for x in inputs:
        loss = pruner.loss(x)
        loss.backward()
        pruner.step(optimizer)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[2] > 1e-3
    pruner.finalize()
    assert not any(module._forward_hooks for module in (*model.modules(), *dense.modules()))


def test_what_is_no_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="4x1 is no structure"):
        Cut(sparsity=0.5, granularity="4x1")


def test_patterns_of_layers_fit_one_event() -> None:
    recipe = [{"cut": {"sparsity": 0.5, "granularity": "layer", "criterion": "random", "end": 4}}]
    recipe[0]["cut"]["ignore"] = ["encoder.layers.0"]
    inputs = [x for x, _ in batches(1)]
    with pytest.raises(UsageError, match="choose schedule one_shot"):
        Pruner(attention(4), recipe, loss=squared, calibration=inputs)
