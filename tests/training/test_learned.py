"""What all learned masks have in common."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from learned_cases import batches, network, squared, train
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import on_two_processes

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.training import Pruner, read_training_recipe

METHODS: dict[str, dict[str, Any]] = {
    "movement": {"sparsity": 0.5},
    "soft_movement": {"strength": 3.0, "threshold": 0.45, "learning_rate": 0.1},
    "snip_momentum": {"sparsity": 0.5, "every": 2},
    "lasso": {"sparsity": 0.5},
    "l0": {"sparsity": 0.5},
}
END, STEPS = 10, 14


def recipe(name: str, granularity: str = "element", **options: Any) -> list[Any]:
    given = {"granularity": granularity, "end": END, **METHODS[name], **options}
    if "unit" not in granularity:
        given["layers"] = ["0", "2"]
    return [{name: given}]


@pytest.mark.parametrize("at", [4, 12])
@pytest.mark.parametrize("granularity", ["4x1", "unit(keep=1)"])
@pytest.mark.parametrize("name", METHODS)
def test_a_training_that_stops_goes_on_with_the_same_numbers(
    name: str, granularity: str, at: int
) -> None:
    data = batches(STEPS)

    def start(model: nn.Module) -> tuple[Pruner, torch.optim.Optimizer]:
        pruner = Pruner(model, recipe(name, granularity), loss=squared)
        return pruner, torch.optim.AdamW(model.parameters(), lr=0.05)

    whole = network()
    pruner, optimizer = start(whole)
    losses = train(pruner, optimizer, data)
    stopped = network()
    pruner, optimizer = start(stopped)
    before = train(pruner, optimizer, data[:at])
    file = io.BytesIO()
    torch.save((stopped.state_dict(), optimizer.state_dict(), pruner.state_dict()), file)
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
    report = pruner.finalize()
    assert "groups removed" in report.events[-1].text
    assert 0 < pruner.sparsity < 1


@pytest.mark.parametrize("name", METHODS)
def test_from_the_end_of_the_window_zeros_stay(name: str) -> None:
    model = network()
    pruner = Pruner(model, recipe(name), loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    train(pruner, optimizer, batches(END))
    zeros = {n: p == 0 for n, p in model.named_parameters()}
    before = model[0].weight.clone()
    train(pruner, optimizer, batches(STEPS)[END:])
    assert all(torch.equal(p == 0, zeros[n]) for n, p in model.named_parameters())
    assert not torch.equal(model[0].weight, before)
    share = pruner.sparsity
    pruner.finalize()
    assert pruner.sparsity == share


@pytest.mark.parametrize("name", METHODS)
def test_removed_units_can_be_taken_out(name: str) -> None:
    model = network()
    pruner = Pruner(model, recipe(name, "unit(keep=2)"), loss=squared)
    train(pruner, torch.optim.Adam(model.parameters(), lr=0.05), batches(STEPS))
    pruner.finalize()
    left = [int(model[i].weight.any(0).sum()) for i in (2, 4)]
    assert left[0] < 10 or left[1] < 6
    cut = copy.deepcopy(model)
    se.prune(cut, granularity="unit(keep=2)", criterion="magnitude(threshold=1e-30)")
    assert [cut[0].out_features, cut[2].out_features] == left
    x = batches(1)[0][0]
    torch.testing.assert_close(cut(x), model(x), rtol=0, atol=1e-6)  # prune writes float32


@pytest.mark.parametrize("name", METHODS)
def test_a_training_without_an_end_settles_when_it_is_finalized(name: str) -> None:
    model = network()
    pruner = Pruner(model, recipe(name, end=100), loss=squared)
    train(pruner, torch.optim.Adam(model.parameters(), lr=0.05), batches(6))
    pruner.finalize()
    assert all(p.isfinite().all() for p in model.parameters())
    zeros = sum(int((model[i].weight == 0).sum()) for i in (0, 2))
    assert zeros / 130 == pytest.approx(pruner.sparsity)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_that_overflow_change_no_score(name: str) -> None:
    found = []
    for overflows in (False, True):
        model = network()
        pruner = Pruner(model, recipe(name), loss=squared)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = batches(3)
        train(pruner, optimizer, data[:2])
        if overflows:
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
            loss = pruner.loss(data[2])
            (scaler.scale(loss) * torch.inf).backward()
            pruner.step(optimizer, scaler)
        found.append(pruner.state_dict()["modifiers"])
    for key in ("scores", "gates"):
        if key in found[0][0]:
            torch.testing.assert_close(found[1][0][key], found[0][0][key], rtol=0, atol=0)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("granularity", ["element", "4x1"])
@pytest.mark.parametrize("name", ["movement", "snip_momentum"])
def test_without_a_gradient_the_smallest_weights_go(name: str, granularity: str) -> None:
    model = network()
    pruner = Pruner(model, recipe(name, granularity), loss=lambda m, b: 0 * squared(m, b))
    before = model[0].weight.detach().clone()
    train(pruner, torch.optim.SGD(model.parameters(), lr=0.1), batches(END))
    height = 4 if granularity == "4x1" else 1
    sums = torch.stack([rows.abs().sum(0) for rows in before.split(height)])
    kept = torch.stack([rows.any(0) for rows in model[0].weight.split(height)])
    assert sums[kept].min() > sums[~kept].max()


def test_a_sparsity_above_the_limit_of_a_layer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sparsity 0\.5 is out of reach with max_sparsity=0\.4"):
        Pruner(network(), recipe("lasso", max_sparsity=0.4), loss=squared)


def test_two_modifiers_of_one_layer_are_refused() -> None:
    both = [*recipe("movement"), *recipe("lasso")]
    with pytest.raises(UsageError, match="0 is pruned by movement and by lasso"):
        Pruner(network(), both, loss=squared)
    first = {"prune": {"sparsity": 0.5, "end": 4, "layers": ["2"]}}
    with pytest.raises(UsageError, match="2 is pruned by another modifier and by l0"):
        Pruner(network(), [first, *recipe("l0")], loss=squared)
    with pytest.raises(UsageError, match="2 is pruned by l0 and by another one"):
        Pruner(network(), [*recipe("l0"), first], loss=squared)


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_another_model_is_refused(name: str) -> None:
    state = Pruner(network(), recipe(name), loss=squared).state_dict()
    state["masks"] = {}
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 6)).double()
    other = Pruner(wide, recipe(name), loss=squared)
    if name == "lasso":  # its only state is its strength
        other.load_state_dict(state)
        return
    with pytest.raises(InvalidFileError, match="other groups"):
        other.load_state_dict(state)


class Attention(nn.Module):
    """An encoder with heads and units."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@pytest.mark.parametrize("name", METHODS)
def test_heads_and_units_of_a_transformer_at_once(name: str) -> None:
    model = Attention()
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(4, 5, 8, generator=generator) for _ in range(STEPS)]
    options = {"granularity": ["head", "unit(keep=2)"], "end": END, **METHODS[name]}
    pruner = Pruner(model, [{name: options}], loss=lambda m, x: (m(x) - x.sin()).square().mean())
    train(pruner, torch.optim.Adam(model.parameters(), lr=0.02), data)
    report = pruner.finalize()
    assert "of 32 groups removed, head, unit(keep=2)" in report.events[-1].text
    assert 0 < pruner.sparsity < 1
    cut = copy.deepcopy(model)
    se.prune(cut, granularity=["head", "unit(keep=2)"], criterion="magnitude(threshold=1e-30)")
    torch.testing.assert_close(cut.eval()(data[0]), model.eval()(data[0]), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


def learned_on_a_half(rank: int) -> dict[str, list[Tensor]]:
    found = {}
    for name in METHODS:
        model = network()
        pruner = Pruner(DistributedDataParallel(model), recipe(name, "4x1"), loss=squared)
        parts = [(x[rank::2], y[rank::2]) for x, y in batches(STEPS)]
        train(pruner, torch.optim.Adam(model.parameters(), lr=0.02), parts)
        pruner.finalize()
        found[name] = [p.detach() for p in model.parameters()]
    return found


def test_two_processes_learn_the_masks_of_one_with_the_whole_batch() -> None:
    first, second = on_two_processes(learned_on_a_half)
    for name in METHODS:
        model = network()
        pruner = Pruner(model, recipe(name, "4x1"), loss=squared)
        train(pruner, torch.optim.Adam(model.parameters(), lr=0.02), batches(STEPS))
        pruner.finalize()
        for a, b, c in zip(first[name], second[name], model.parameters(), strict=True):
            assert torch.equal(a, b), name
            torch.testing.assert_close(a, c.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_is_read_from_its_own_text(name: str, tmp_path: Path) -> None:
    given = read_training_recipe({"modifiers": recipe(name, "unit(keep=2)"), "end": 20})
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(given.to_dict()))
    assert read_training_recipe(path).to_dict() == given.to_dict()
    assert given.to_dict()["modifiers"][0][name]["granularity"] == "unit(keep=2)"


# Not for single weights: movement removes those that cross zero on their way.
@pytest.mark.parametrize("granularity", ["4x1", "column"])
@pytest.mark.parametrize("name", METHODS)
def test_what_the_labels_do_not_depend_on_is_removed(name: str, granularity: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 4))
    with torch.no_grad():
        model[0].weight.copy_(0.1 * torch.randn(4, 24, generator=generator))
    wanted = torch.randint(2, (4, 6), generator=generator) * 2.0 - 1
    options: dict[str, Any] = {"sparsity": 0.75}
    if name == "soft_movement":
        options = {"strength": 0.5, "learning_rate": 0.1}
    given = {"granularity": granularity, "end": 150, "layers": ["0"], **options}
    pruner = Pruner(model, [{name: given}], loss=squared)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    inputs = [torch.randn(32, 24, generator=generator) for _ in range(160)]
    train(pruner, optimizer, [(x, x[:, :6] @ wanted.T) for x in inputs])
    pruner.finalize()
    kept = model[0].weight != 0
    assert kept[:, :6].all()
    assert not kept[:, 6:].any()  # random masks would keep a quarter of them
