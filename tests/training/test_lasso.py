"""Lasso: proximal steps, the controlled strength, and structures that vanish as a whole."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from learned_cases import batches, network, squared, train
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.training import Lasso, Pruner


def one_step(modifier: Lasso, optimizer: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A model after a step with the penalty, and one after the same step without."""
    models = []
    for own in ([modifier], [{"hold": {"layers": ["2"]}}]):
        model = network()
        with torch.no_grad():
            model[2].weight[0, 0] = 0
        pruner = Pruner(model, own, loss=squared)
        train(pruner, optimizer(model.parameters(), **options), batches(1))
        models.append(model)
    return models[0], models[1]


@pytest.mark.parametrize("granularity", ["element", "3x2", "row", "column"])
def test_a_step_minimises_distance_and_penalty(granularity: str) -> None:
    rate, strength = 0.1, 0.8
    modifier = Lasso(strength=strength, granularity=granularity, layers=("0",))
    model, plain = one_step(modifier, torch.optim.SGD, lr=rate)
    block = se.Block(1, 1) if granularity == "element" else se.Block.parse(granularity)
    assert block is not None
    height, width = block.size(10, 7)
    zeros = 0
    for row in range(0, 10, height):
        for column in range(0, 7, width):
            tile = slice(row, row + height), slice(column, column + width)
            before, after = plain[0].weight[tile].detach(), model[0].weight[tile].detach()
            step = rate * strength * math.sqrt(before.numel())
            # The minimum of |v - w|^2 / 2 + step |v|: its gradient is zero, or 0 is in it.
            if after.any():
                gradient = after - before + step * after / after.norm()
                torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
            else:
                zeros += 1
                assert before.norm() <= step
    if granularity == "element":
        assert 0 < zeros < 70
    assert torch.equal(model[4].weight, plain[4].weight)


def test_the_step_does_not_depend_on_the_scaling_of_an_adaptive_optimizer() -> None:
    modifier = Lasso(strength=0.5, layers=("0",))
    model, plain = one_step(modifier, torch.optim.AdamW, lr=0.02)
    before = plain[0].weight.detach()
    expected = before.sign() * (before.abs() - 0.02 * 0.5).clamp_min(0)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("granularity", ["element", "4x1", "unit(keep=1)"])
def test_the_sparsity_of_the_recipe_is_reached(granularity: str) -> None:
    model = network()
    layers: Any = ("0", "2") if "unit" not in granularity else ()
    modifier = Lasso(sparsity=0.5, granularity=granularity, layers=layers, end=150)
    pruner = Pruner(model, [modifier], loss=squared)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    train(pruner, optimizer, batches(150))
    largest = int(max(own.sizes.max() for own in modifier._whole))
    total = sum(own.weights for own in modifier._whole)
    groups = zip(modifier._whole, modifier._norms(pruner._training), strict=True)
    removed = sum(int(own.sizes[norm == 0].sum()) for own, norm in groups)
    assert abs(removed - total / 2) <= largest / 2
    forced, settled = (event.text for event in pruner.finalize().events)
    assert "strength" in forced
    assert "groups removed" in settled
    count = sum(own.count for own in modifier._whole)
    assert int(forced.split()[0]) < 0.1 * count  # of the half that goes most are zero before


def test_without_a_sparsity_more_strength_gives_more_zeros() -> None:
    found = []
    for strength in (1e-4, 0.3, 3.0):
        model = network()
        pruner = Pruner(model, [Lasso(strength=strength, layers=("0", "2"))], loss=squared)
        train(pruner, torch.optim.Adam(model.parameters(), lr=0.02), batches(60))
        report = pruner.finalize()
        found.append(pruner.sparsity)
    assert found[0] < 0.05 < found[1] < found[2]
    assert found[2] == pytest.approx(1 - 2 / 130)
    assert [text.partition(":")[0] for text in report.warnings] == ["guard", "guard"]


def test_zeros_may_come_back_until_the_end_of_the_window() -> None:
    model = network()
    pruner = Pruner(model, [Lasso(strength=0.3, layers=("0",), end=40)], loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    data = batches(50)
    were_zero = torch.zeros(10, 7, dtype=torch.bool)
    returned = False
    for batch in data[:40]:
        train(pruner, optimizer, [batch])
        zeros = model[0].weight == 0
        returned |= bool((were_zero & ~zeros).any())
        were_zero = zeros
    assert returned
    train(pruner, optimizer, data[40:])
    assert torch.equal(model[0].weight == 0, were_zero)
    assert 0 < were_zero.sum() < 70


class Tagger(nn.Module):
    """An LSTM whose units can be taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, num_layers=2, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0])


def test_units_of_an_lstm_that_vanish_can_be_taken_out() -> None:
    torch.manual_seed(0)
    model, structure = Tagger().double(), "unit(readers='lstm: fc', keep=1)"
    x = torch.randn(5, 4, 3, dtype=torch.float64)

    def loss(model: Any, batch: Tensor) -> Tensor:
        return (model(batch) - batch[..., :2]).square().mean()

    recipe = {"end": 30, "modifiers": [{"lasso": {"sparsity": 0.5, "granularity": structure}}]}
    pruner = Pruner(model, recipe, loss=loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    train(pruner, optimizer, [x] * 30)
    pruner.finalize()
    zero = [
        int((own.whole.sums(lambda y: y.weight_in(model).abs()) == 0).sum())
        for own in pruner._modifiers[0]._groups
    ]  # type: ignore[attr-defined]
    assert sum(zero) == 6
    cut = copy.deepcopy(model)
    least = min(zero)  # both layers of a network keep equally many units
    se.prune(cut, least / 6, structure, "magnitude")
    assert cut.lstm.hidden_size == 6 - least
    torch.testing.assert_close(cut(x), model(x), rtol=0, atol=1e-6)  # prune writes float32


def test_a_sparsity_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="needs an end"):
        Pruner(network(), [Lasso(sparsity=0.5)], loss=squared)


def test_a_training_that_stops_early_says_so() -> None:
    pruner = Pruner(network(), [Lasso(sparsity=0.5, end=100)], loss=squared)
    [warning] = pruner.finalize().warnings
    assert "stopped at step 0 of 100" in warning
