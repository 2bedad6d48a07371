"""Snapshots restore everything that cutting, folding and refitting may change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from untouched import Picture

from sparse_engine.modules.effective import fold_
from sparse_engine.structures.snapshot import Snapshot, unchanged_after_error


class Config(SimpleNamespace):
    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.lstm = nn.LSTM(6, 5, proj_size=3)
        self.register_buffer("scale", torch.ones(2), persistent=False)
        self.heads = 4
        self.sizes = [[1, 2], {"a": {3}}]
        self.config = Config(width=6, inner=Config(layers=[1, 2]))


def wreck(model: Any) -> None:
    """Change everything that can be changed."""
    del model.blocks[1]
    model.blocks[0].weight = nn.Parameter(torch.zeros(3, 6))
    model.blocks[0].out_features = 3
    model.blocks[0].bias.requires_grad_(False)
    model.blocks[0].bias.data = torch.zeros(9)
    model.blocks[1] = nn.Identity()
    model.lstm.weight_hr_l0 = nn.Parameter(torch.zeros(2, 5))
    model.lstm.hidden_size = 1
    model.register_buffer("scale", None)
    model.register_buffer("new", torch.ones(1), persistent=False)
    model.heads, model.other = 2, 1
    model.sizes[0].append(9)
    model.sizes[1]["a"].add(9)
    model.config.width = 3
    model.config.inner.layers.pop()
    model.config.inner = None
    model.register_forward_hook(lambda *_: None)
    model.eval()


def test_everything_is_put_back() -> None:
    model = Model()
    before, inner = Picture(model), model.config.inner

    def interrupted() -> None:
        with unchanged_after_error(model):
            wreck(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.blocks[0].bias.requires_grad
    before.check(model)
    assert model.config.inner is inner
    assert (model.config.width, inner.layers) == (6, [1, 2])
    assert model.sizes == [[1, 2], {"a": {3}}]


def test_without_an_error_nothing_is_put_back() -> None:
    model = Model()
    with unchanged_after_error(model):
        model.heads = 2
    assert model.heads == 2


def masked(linear: nn.Module) -> nn.Module:
    return prune.l1_unstructured(linear, "weight", 0.5)  # type: ignore[no-untyped-call,no-any-return]


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def doubled(linear: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(linear, "weight", Doubled())


@pytest.mark.parametrize(
    "made",
    [
        masked,
        doubled,
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
)
def test_weights_that_are_computed_are_not_left_folded(made: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    made(model[0])
    x = torch.randn(2, 6)
    expected = model.eval()(x)
    before = Picture(model)
    snapshot = Snapshot(model)
    assert fold_(model)
    snapshot.restore()
    before.check(model)
    assert torch.equal(model(x), expected)


def test_the_first_copy_of_values_counts() -> None:
    model = Model()
    before = Picture(model)
    snapshot = Snapshot(model)
    weight = model.blocks[0].weight
    for value in (1.0, 2.0):
        snapshot.keep([(weight, weight.detach().clone())])
        weight.data.fill_(value)
    part = model.blocks[1].weight.detach()[2:4]
    snapshot.keep([(part, part.clone())])
    part.zero_()
    whole = model.blocks[1].weight
    snapshot.keep([(whole, whole.detach().clone())])
    whole.data.fill_(3.0)
    model.blocks[2].weight = nn.Parameter(torch.ones(2, 2))
    snapshot.keep([(model.blocks[2].weight, torch.zeros(2, 2))])
    snapshot.restore()
    before.check(model)


def test_memory_in_pieces_is_copied_at_once() -> None:
    model = nn.Linear(4, 6)
    model.weight = nn.Parameter(torch.randn(4, 6).T)
    before = Picture(model)
    snapshot = Snapshot(model)
    model.weight.data.zero_()
    snapshot.restore()
    before.check(model)
