"""Hold: zeros of a model that was pruned before stay zero while it is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.training import Hold, Pruner


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 4))


def energy(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x[:, :4]).square().mean()


def train(model: nn.Module, recipe: object, steps: int = 5) -> None:
    pruner = Pruner(model, recipe, loss=energy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        pruner.loss(torch.randn(8, 16)).backward()
        pruner.step(optimizer)
    pruner.finalize()


@pytest.mark.parametrize("granularity", ["4x1", "2:4", "element"])
def test_the_pattern_of_zeros_is_kept(granularity: str) -> None:
    model = network()
    se.prune(model, None if ":" in granularity else 0.75, granularity, layers=["0", "2"])
    zeros = {name: p == 0 for name, p in model.named_parameters()}
    before = model[0].weight.clone()
    train(model, [Hold()])
    assert all(torch.equal(p == 0, zeros[name]) for name, p in model.named_parameters())
    assert not torch.equal(model[0].weight, before)


def test_after_its_end_all_weights_are_trained() -> None:
    model = network()
    se.prune(model, 0.75, layers=["0"])
    train(model, [Hold(end=3)])
    assert model[0].weight.all()


def test_a_dense_model_has_nothing_to_hold() -> None:
    with pytest.raises(UsageError, match="no layer has a weight that is zero"):
        Pruner(network(), [Hold()], loss=energy)


@pytest.mark.parametrize(("layers", "text"), [(["2"], "1 layer"), (["0", "2"], "2 layers")])
def test_the_report_counts_the_layers(layers: list[str], text: str) -> None:
    model = network()
    se.prune(model, 0.5, layers=layers)
    pruner = Pruner(model, [{"hold": {"layers": layers}}], loss=energy)
    pruner.loss(torch.randn(8, 16)).backward()
    pruner.step(torch.optim.SGD(model.parameters(), lr=0.1))
    assert [event.text for event in pruner.finalize().events] == [f"the zeros of {text}"]


@pytest.mark.parametrize(("layers", "text"), [(["2"], "1 layer ("), (["0", "2"], "2 layers (")])
def test_the_report_of_prune_counts_the_layers(layers: list[str], text: str) -> None:
    lines = str(se.prune(network(), 0.5, layers=layers)).splitlines()
    assert any(line.startswith(text) for line in lines)
