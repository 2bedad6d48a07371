"""Freeze: frozen weights are constant to the bit, the others are trained."""

from __future__ import annotations

import pytest
import torch
from training_models import adamw, assert_goes_on, batches, network, squared, train

from sparse_engine.errors import UsageError
from sparse_engine.training import Freeze, Pruner
from sparse_engine.training.modifiers.freeze import largest


def test_whole_layers_are_constant_under_weight_decay_and_momentum() -> None:
    model = network()
    pruner = Pruner(model, [Freeze(layers=("2",), start=2, end=6)], loss=squared)
    optimizer = adamw(model)
    data = batches(8)
    train(pruner, optimizer, data[:2])
    frozen, other = model[2].weight.detach().clone(), model[0].weight.detach().clone()
    train(pruner, optimizer, data[2:6])
    assert torch.equal(model[2].weight, frozen)
    assert not torch.equal(model[0].weight, other)
    train(pruner, optimizer, data[6:])
    assert not (model[2].weight == frozen).any()


def test_the_largest_share_is_frozen_and_the_rest_is_pruned_further() -> None:
    model = network()
    recipe = [
        {"prune": {"sparsity": 0.5, "layers": ["0", "2"]}},
        {"freeze": {"share": 0.5, "layers": ["0", "2"], "start": 1, "end": 6}},
        {"prune": {"sparsity": 0.7, "layers": ["0", "2"], "start": 3}},
    ]
    pruner = Pruner(model, recipe, loss=squared)
    optimizer = adamw(model)
    data = batches(8)
    train(pruner, optimizer, data[:1])
    weight = model[2].weight
    chosen = largest(weight.detach(), 0.5)
    assert chosen.sum() == 144  # of 576 weights half are zero
    before = weight.detach().clone()
    train(pruner, optimizer, data[1:6])
    assert torch.equal(weight[chosen], before[chosen])
    rest = ~chosen & (weight != 0)
    assert rest.any()
    assert not (weight[rest] == before[rest]).any()
    train(pruner, optimizer, data[6:])
    assert not (weight[chosen] == before[chosen]).any()
    assert pruner.finalize().sparsity == pytest.approx({"0": 0.7, "2": 0.7}, abs=0.01)


def test_frozen_weights_that_are_removed_stay_removed() -> None:
    model = network()
    recipe = [
        Freeze(layers=("2",), end=6),
        {"prune": {"sparsity": 0.5, "layers": ["2"], "start": 2}},
    ]
    pruner = Pruner(model, recipe, loss=squared)
    train(pruner, adamw(model), batches(5))
    assert (model[2].weight == 0).float().mean() == 0.5


def test_the_momentum_of_frozen_weights_fades() -> None:
    model = network()
    pruner = Pruner(model, [Freeze(layers=("2",), start=1)], loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    train(pruner, optimizer, batches(1))
    first = optimizer.state[model[2].weight]["momentum_buffer"].clone()
    train(pruner, optimizer, batches(2))
    last = optimizer.state[model[2].weight]["momentum_buffer"]
    torch.testing.assert_close(last, first / 4)


@pytest.mark.parametrize("at", [1, 3, 6])
def test_it_goes_on_after_a_stop(at: int) -> None:
    assert_goes_on([{"freeze": {"share": 0.4, "start": 2, "end": 6}}], 8, at)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="matches no layer"):
        Pruner(network(), [Freeze(layers=("nine",))], loss=squared)
