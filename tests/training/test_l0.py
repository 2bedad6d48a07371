"""L0: gradients of gates and weights against autograd, and the sparsity that is reached."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from learned_cases import batches, network, squared, train
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.training import L0, Pruner
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.hard_concrete import BETA, GAMMA, SHIFT, ZETA, noise

RATE, STEPS = 0.2, 8
CASES: dict[str, dict[int, tuple[int, int]]] = {
    "element": {0: (10, 7), 2: (6, 10)},
    "4x1": {0: (3, 7), 2: (2, 10)},
    "unit(keep=1)": {2: (1, 10), 4: (1, 6)},
}
SHAPES = {0: (10, 7), 2: (6, 10), 4: (2, 6)}


def spread(grid: Tensor, granularity: str, shape: tuple[int, int]) -> Tensor:
    if granularity.startswith("unit"):
        return grid.expand(shape)
    height = 4 if granularity == "4x1" else 1
    return grid.repeat_interleave(height, 0)[: shape[0]]


def reference(granularity: str, sparsity: float | None) -> tuple[nn.Module, list[Tensor]]:
    """Training with gates in the graph; their parameters and the multipliers are leaves too."""
    model, grids = network(), CASES[granularity]
    start = math.log(0.7 / 0.3)
    gates = {
        i: torch.full(grid, start, dtype=torch.float64, requires_grad=True)
        for i, grid in grids.items()
    }
    a, b = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.optim.SGD(model.parameters(), lr=RATE)
    of_gates = torch.optim.Adam(list(gates.values()), lr=0.1)
    ascent = torch.optim.Adam([a, b], lr=0.1, maximize=True)
    generator = torch.Generator().manual_seed(0)
    total = sum(SHAPES[i][0] * SHAPES[i][1] for i in gates)
    for step, (x, y) in enumerate(batches(STEPS)):
        z = {}
        for i, own in gates.items():
            u = noise(own.detach().flatten(), generator).view_as(own)
            s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + own) / BETA)
            z[i] = (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        for i, layer in enumerate(model):
            if i in z:
                x = F.linear(x, layer.weight * spread(z[i], granularity, SHAPES[i]), layer.bias)
            else:
                x = layer(x)
        open_ = sum(
            spread(torch.sigmoid(own - SHIFT), granularity, SHAPES[i]).sum()
            for i, own in gates.items()
        )
        if sparsity is None:
            penalty: Any = 0.3 * open_ / total
        else:
            missing = sparsity * min((step + 1) / (0.5 * STEPS), 1) - (1 - open_ / total)
            penalty = a * missing + b * missing**2
        for optimizer in (weights, of_gates, ascent):
            optimizer.zero_grad()
        ((x - y).square().mean() + penalty).backward()
        weights.step()
        of_gates.step()
        if sparsity is not None:
            ascent.step()
    return model, [own.detach().flatten() for own in gates.values()]


@pytest.mark.parametrize("sparsity", [None, 0.6])
@pytest.mark.parametrize("granularity", CASES)
def test_training_is_that_of_autograd(granularity: str, sparsity: float | None) -> None:
    expected, gates = reference(granularity, sparsity)
    layers: Any = () if granularity.startswith("unit") else ("0", "2")
    options: Any = {"granularity": granularity, "layers": layers, "learning_rate": 0.1, "open": 0.7}
    modifier = L0(strength=0.3, sparsity=sparsity, end=STEPS, **options)
    model = network()
    pruner = Pruner(model, [modifier], loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    train(pruner, optimizer, batches(STEPS))
    for own, value in zip(modifier._gates.values, gates, strict=True):
        torch.testing.assert_close(own, value, rtol=0, atol=1e-9)
    # The gates are factors of the weights now, and closed ones are removed.
    for i, value in zip(CASES[granularity], gates, strict=True):
        weight, trained = model[i].weight.detach(), expected[i].weight.detach()
        gate = (value.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        factor = gate.where(gate > 0, value.sigmoid()).view(CASES[granularity][i])
        product = trained * spread(factor, granularity, SHAPES[i])
        kept = weight != 0
        torch.testing.assert_close(weight[kept], product[kept], rtol=0, atol=1e-9)
    assert pruner.sparsity < 1
    assert (pruner.sparsity > 0) is (sparsity is not None)
    for i in (0, 2, 4):
        torch.testing.assert_close(model[i].bias, expected[i].bias, rtol=0, atol=1e-9)


def test_weights_are_without_gates_between_steps() -> None:
    model, plain = network(), network()
    pruner = Pruner(model, [L0(layers=("0",))], loss=squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.loss(batches(1)[0]).backward()
    assert not torch.equal(model[0].weight, plain[0].weight)
    pruner.step(optimizer)
    assert torch.equal(model[0].weight, plain[0].weight)


def test_an_interrupt_while_gates_are_drawn_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(3)
    whole = network()
    losses = train(Pruner(whole, [L0(layers=("0", "2"))], loss=squared), sgd(whole), data)
    model = network()
    pruner = Pruner(model, [L0(layers=("0", "2"))], loss=squared)
    before = [p.detach().clone() for p in model.parameters()]
    view, calls = TrainedLayer.weight_in, iter(range(10))

    def interrupted(layer: TrainedLayer, of: nn.Module) -> Tensor:
        if next(calls) == 1:  # the gates of the first layer are in its weight
            raise KeyboardInterrupt
        return view(layer, of)

    monkeypatch.setattr(TrainedLayer, "weight_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pruner.loss(data[0])
    monkeypatch.undo()
    assert all(map(torch.equal, before, model.parameters()))
    assert train(pruner, sgd(model), data) == losses


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_accumulated_batches_see_the_same_gates() -> None:
    data, models = batches(2), []
    large = tuple(map(torch.cat, zip(*data, strict=True)))
    for parts in ([large], data):
        model = network()
        modifier = L0(layers=("0", "2"))
        pruner = Pruner(model, [modifier], loss=squared)
        losses = [pruner.loss(part) / len(parts) for part in parts]
        torch.stack(losses).sum().backward()
        pruner.step(torch.optim.SGD(model.parameters(), lr=0.1))
        models.append((model, modifier))
    for a, b in zip(models[0][0].parameters(), models[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(models[0][1]._gates.values, models[1][1]._gates.values)


@pytest.mark.parametrize("granularity", ["element", "unit(keep=1)"])
def test_the_sparsity_of_the_recipe_is_reached(granularity: str) -> None:
    model = network()
    layers: Any = () if granularity.startswith("unit") else ("0", "2")
    modifier = L0(sparsity=0.5, granularity=granularity, layers=layers, end=80)
    pruner = Pruner(model, [modifier], loss=squared)
    train(pruner, torch.optim.Adam(model.parameters(), lr=0.02), batches(80))
    pruner.finalize()
    kept = [
        own.sizes[own.sums(lambda x: x.weight_in(model).abs()) != 0] for own in modifier._groups
    ]
    total = sum(own.weights for own in modifier._groups)
    left = sum(int(sizes.sum()) for sizes in kept)
    largest = max(int(own.sizes.max()) for own in modifier._groups)
    assert abs(left - total / 2) <= largest / 2


def test_expected_sparsity_follows_the_wanted_one() -> None:
    model = network()
    modifier = L0(sparsity=0.6, layers=("0", "2"), end=300)
    pruner = Pruner(model, [modifier], loss=squared)
    train(pruner, torch.optim.Adam(model.parameters(), lr=0.01), batches(299))
    probabilities = torch.cat([(own - SHIFT).sigmoid() for own in modifier._gates.values])
    assert 1 - float(probabilities.mean()) == pytest.approx(0.6, abs=0.05)


def test_a_loss_without_gates_is_refused() -> None:
    model = network()
    pruner = Pruner(model, [L0()], loss=squared)
    squared(model, batches(1)[0]).backward()
    with pytest.raises(UsageError, match=r"compute it by pruner\.loss"):
        pruner.step(torch.optim.SGD(model.parameters(), lr=0.1))
