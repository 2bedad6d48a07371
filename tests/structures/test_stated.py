"""Units and filters with stated readers: cut models against copies with zeros."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from whole_models import TextCnn, ids

import sparse_engine as se
from sparse_engine.errors import UsageError

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def removed(site: Any) -> list[int]:
    return [i for i in range(site.groups) if i not in site.kept]


def text_cnn() -> TextCnn:
    torch.manual_seed(0)
    return TextCnn().eval()


@torch.inference_mode()
def test_filters_of_parallel_convolutions_that_are_concatenated() -> None:
    model = text_cnn()
    dense = copy.deepcopy(model)
    structures = [se.Filter(readers="convs.*: mix"), se.Unit(readers="mix: classify")]
    report = se.prune(model, 0.3, structures, seed=1)
    assert [len(site.kept) for site in report.sites] == [17, 17, 17, 45]
    for i, site in enumerate(report.sites):
        if site.kind == "filter":
            dense.mix.weight[:, [24 * i + j for j in removed(site)]] = 0
        else:
            dense.classify.weight[:, removed(site)] = 0
    x = ids(4, 11)
    torch.testing.assert_close(model(x), dense(x), **TIGHT)
    kept = list(report.sites[1].kept)
    assert torch.equal(model.convs[1].weight, dense.convs[1].weight[kept])
    assert (model.mix.in_features, model.convs[2].out_channels) == (51, 17)


def test_without_a_statement_the_module_and_the_option_are_named() -> None:
    with pytest.raises(UsageError, match=r"what reads convs\.0 is not known.*filter\(readers="):
        se.prune(text_cnn(), 0.3, "filter")


def test_a_cut_text_cnn_is_refitted_trains_and_is_pruned_further() -> None:
    model = text_cnn()
    dense, x = copy.deepcopy(model), ids(64, 11)
    with torch.no_grad():
        expected = dense(x)
    calibration = [ids(32, 11) for _ in range(8)]
    errors = {}
    for recovery in (None, "least_squares"):
        cut = copy.deepcopy(model)
        text = "filter(readers='convs.*: mix')"
        se.prune(cut, 0.5, text, "magnitude", recovery=recovery, calibration=calibration)
        with torch.no_grad():
            errors[recovery] = float((cut(x) - expected).square().mean())
    assert errors["least_squares"] < 0.5 * errors[None]
    copied = copy.deepcopy(cut)
    copied.load_state_dict(cut.state_dict())
    copied.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in copied.parameters())
    se.prune(cut, 0.7)
    before = cut(x)
    se.sparsify_(cut, "csr")
    with torch.inference_mode():
        torch.testing.assert_close(cut(x), before, rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    """Convolutions with norms, and linear layers behind all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 10, 3, padding=1), nn.Conv1d(10, 8, 3, padding=1)
        self.norm, self.joined = nn.BatchNorm1d(10), nn.BatchNorm1d(18)
        self.scale = nn.PReLU(8)
        self.tail = nn.Sequential(nn.Conv1d(18, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.wide, self.out = nn.Linear(6 * 7, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = torch.cat([x, self.scale(self.second(x))], 1)
        x = self.tail(self.joined(x))
        return self.out(self.wide(x.flatten(1)).tanh())


READERS = "first: norm second joined tail.0; second: scale joined tail.0; tail.0: wide"


@torch.inference_mode()
def test_norms_concatenations_and_flattened_positions() -> None:
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(torch.randn(16, 4, 7) * 2 + 1)
    dense = copy.deepcopy(model.eval())
    structures = [se.Filter(readers=READERS), se.Unit(keep=2, readers="wide: out")]
    report = se.prune(model, 0.5, structures)
    gone = {site.name: removed(site) for site in report.sites}
    assert {name: len(left) for name, left in gone.items()} == {
        "first": 5,
        "second": 4,
        "tail.0": 3,
        "wide": 10,
    }
    dense.second.weight[:, gone["first"]] = 0
    dense.tail[0].weight[:, [*gone["first"], *(10 + i for i in gone["second"])]] = 0
    dense.wide.weight.unflatten(1, (6, 7))[:, gone["tail.0"]] = 0
    dense.out.weight[:, gone["wide"]] = 0
    x = torch.randn(3, 4, 7)
    torch.testing.assert_close(model(x), dense(x), **TIGHT)
    assert model.joined.num_features == 9


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (se.Filter(readers="nothing.*: wide"), "no linear layer or Conv1d has such a name"),
        (se.Filter(readers="first: nothing"), "there is no module 'nothing'"),
        (se.Filter(readers="first: second wide"), "wide reads 42 features, but first has 10"),
        (se.Filter(readers="second: tail.0"), "tail.0 reads 18 features, but second has 8"),
        (se.Filter(readers="first: norm"), "no linear layer or Conv1d is among them"),
        (se.Filter(readers="first: tail"), "tail is a Sequential, which cannot lose features"),
        (se.Filter(readers="wide: out"), r"it has units; state them with unit\(\.\.\.\)"),
        (se.Filter(readers="nothing: out"), "nothing"),
        (se.Unit(readers="wide: second"), "second reads 10 features, but wide has 20"),
    ],
)
def test_wrong_statements_leave_the_model_untouched(structure: Any, message: str) -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=message):
        se.prune(model, 0.5, structure)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_statements_against_a_sequential_are_refused() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.GroupNorm(2, 8), nn.Conv1d(8, 8, 1, groups=2))
    for text, message in (("0: 2", "1 is known to follow"), ("2: 0", "2 has 2 groups")):
        with pytest.raises(UsageError, match=message):
            se.prune(model, 0.5, se.Filter(readers=text))
    with pytest.raises(UsageError, match="each module once"):
        se.Filter(readers="a: b; a: c")
