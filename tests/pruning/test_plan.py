"""Which layers a plan prunes and which it leaves: heads, ties, routers, stacks, whole models."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from pruning_models import ARCHITECTURES, of
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.pruning import PruneReport, prune
from sparse_engine.pruning.plan import Plan, make_plan
from sparse_engine.pruning.unrolled import unrolled

HEADS = ("a head", "a pooler", "an embedding", "tied to", "it is parametrized")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_but_heads_and_embeddings_is_pruned(architecture: str) -> None:
    report = prune(of(architecture), 0.8)
    heads = sum(item.multiply_adds for item in report.left if item.reason.startswith(HEADS))
    assert report.pruned_multiply_adds > 0.9 * (1 - heads)
    assert report.pruned_multiply_adds + sum(
        item.multiply_adds for item in report.left
    ) == pytest.approx(1)
    assert report.zeros_of_multiply_adds == pytest.approx(
        0.8 * report.pruned_multiply_adds, abs=0.01
    )


class Classifier(nn.Module):
    """Embeddings, a body, and a last layer of any name."""

    def __init__(self, body: nn.Module, width: int, labels: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.body = body
        self.fc = nn.Linear(width, labels)


class TextCNN(nn.Module):
    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(50, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, channels, kernel) for kernel in (3, 4, 5))
        self.out = nn.Linear(3 * channels, 2)


class Mixture(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 4)
        self.top_k = 2
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(4)
        )
        self.head = nn.Linear(width, 2)


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def gru_pair() -> nn.Module:
    return nn.ModuleDict(
        {
            "source": nn.Embedding(50, 32),
            "encoder": nn.GRU(32, 48),
            "target": nn.Embedding(50, 32),
            "decoder": nn.GRUCell(32, 48),
            "out": nn.Linear(48, 50),
        }
    )


OWN: dict[str, Any] = {
    "mlp": lambda: mlp(64, 128, 128, 10),
    "narrow mlp": lambda: mlp(8, 8, 8),
    "textcnn": lambda: TextCNN(16),
    "small textcnn": lambda: TextCNN(2),
    "lstm tagger": lambda: Classifier(nn.LSTM(32, 40, 2, bidirectional=True), 80),
    "gru pair": gru_pair,
    "encoder": lambda: Classifier(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64), 2), 32
    ),
    "transformer": lambda: nn.Transformer(32, 4, 2, 2, 64),
    "mixture": Mixture,
}


@pytest.mark.parametrize("name", OWN)
def test_own_models_reach_what_was_asked_for(name: str) -> None:
    report = prune(OWN[name](), 0.8)
    assert report.zeros_of_multiply_adds >= 0.79
    assert not report.warnings


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: mlp(256, 256, 256, 3), "2"),
        (lambda: TextCNN(64, 100), "out"),
        (lambda: Classifier(nn.LSTM(32, 128, 2), 128), "fc"),
        (lambda: Classifier(nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4), 2), 64), "fc"),
    ],
)
def test_small_heads_of_any_name_are_left_and_named(model: Any, name: str) -> None:
    report = prune(model(), 0.8)
    (left,) = [item for item in report.left if item.multiply_adds]
    assert left.name == name
    assert "the last layer" in left.reason or "outside" in left.reason
    assert left.multiply_adds < 0.01
    asked = prune(model(), 0.8, filter_fn=lambda module, found: True)
    assert asked.layers[-1].name == name


def planned(model: nn.Module, **arguments: Any) -> Plan:
    with unrolled(model) as opened:
        return make_plan(opened, **arguments)


def test_routers_of_experts_are_left() -> None:
    model = nn.Sequential(*(Mixture(256) for _ in range(3)))
    left = planned(model).left
    assert {name for name, why in left.items() if why.startswith("a router")} == {
        f"{i}.gate" for i in range(3)
    }


class Tied(nn.Module):
    """A language model of one's own: the decoder's weight is the embedding's."""

    def __init__(self, share: str) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.inner = nn.Linear(16, 16)
        self.decoder = nn.Linear(16, 30, bias=False)
        if share == "parameter":
            self.decoder.weight = self.words.weight
        else:  # two parameters over one memory
            self.decoder.weight = nn.Parameter(self.words.weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(self.inner(self.words(ids)))


@pytest.mark.parametrize("share", ["parameter", "memory"])
def test_what_is_tied_to_an_embedding_is_left_unless_asked_for(share: str) -> None:
    model = Tied(share)
    before = model.words.weight.detach().clone()
    report = prune(model, 0.9)
    assert [row.name for row in report.layers] == ["inner"]
    assert torch.equal(model.words.weight, before)
    assert any(x.name == "decoder" and x.reason == "tied to words" for x in report.left)
    asked = prune(model, 0.9, filter_fn=lambda module, name: name == "decoder")
    assert [row.name for row in asked.layers] == ["decoder"]
    assert model.decoder.weight.data_ptr() == model.words.weight.data_ptr()
    assert int((model.words.weight == 0).sum()) == 432
    assert (model.decoder.weight is model.words.weight) == (share == "parameter")


def test_layers_that_a_granularity_does_not_fit_are_left_and_named() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3), nn.Linear(3, 16))
    report = prune(model, 0.5, "4x1")
    assert [row.name for row in report.layers] == ["0", "2"]
    (left,) = report.left
    assert (left.name, left.weights, left.reason) == ("1", 48, "4x1 does not fit 3x16")


def test_stacks_are_the_outermost_lists_that_hold_layers() -> None:
    model = of("bart")
    plan = planned(model)
    assert plan.stacks == [
        [f"model.{part}.layers.{i}" for i in (0, 1)] for part in ("encoder", "decoder")
    ]
    assert plan.stack_module_of("model.decoder.layers.1.fc1") == "model.decoder.layers.1"
    assert plan.stack_module_of("lm_head") is None
    assert planned(mlp(4, 4, 4)).stacks == []


def test_a_known_model_inside_another_keeps_its_residual_streams() -> None:
    inner = planned(of("bert")).residuals
    outer = planned(nn.Sequential(of("bert"), nn.Linear(3, 3))).residuals
    assert len(inner) == 4
    assert outer == {
        f"0.{layer}": replace(residual, module=f"0.{residual.module}")
        for layer, residual in inner.items()
    }


def test_a_report_names_what_was_left_and_warns_where_that_is_most() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 5), nn.Flatten(0), nn.Linear(8, 8), nn.Linear(8, 8))
    report = prune(model, 0.5)
    assert report.shares == (
        "zeros: 50.0% of these layers, 1.3% of all parameters, 1.3% of multiply-adds for one token"
    )
    assert report.warnings == [
        "the pruned layers do only 2.6% of the multiply-adds for one token; "
        "0 has 97.4%: a convolution of more dimensions"
    ]
    text = str(report)
    assert text.startswith(report.summary)
    assert report.shares in text
    assert f"warning: {report.warnings[0]}" in text
    assert "| 0 | 4800 | 97.4% | a convolution of more dimensions |" in text
    (left,) = report.to_dict()["left"]
    assert left == {
        "name": "0",
        "weights": 4800,
        "multiply_adds": 4800 / 4928,
        "reason": "a convolution of more dimensions",
    }


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv1d(8, 8, 3, groups=8)), "0 is left alone, it is depthwise"),
        (nn.Conv2d(3, 4, 3), "none is linear, recurrent or a Conv1d"),
        (se.sparsify_, "sparse already: densify_ it to prune it again"),
    ],
    ids=["depthwise", "2-d", "sparse"],
)
def test_a_model_without_a_layer_to_prune_says_why(model: Any, message: str) -> None:
    if model is se.sparsify_:
        model = mlp(8, 8, 8)
        prune(model, 0.5)
        se.sparsify_(model, "csr")
    with pytest.raises(UsageError, match=message):
        prune(model, 0.5)


def test_what_is_left_of_other_kinds_is_called_by_its_name() -> None:
    model = nn.ModuleDict(
        {"t": nn.ConvTranspose1d(4, 8, 3), "done": mlp(8, 8, 8), "linear": nn.Linear(8, 8)}
    )
    prune(model["done"], 0.5)
    se.sparsify_(model["done"], "csr")
    left = {item.name: item.reason for item in prune(model, 0.5).left}
    assert left == {
        "t": "a transposed convolution",
        "done.0": "sparse already: densify_ the model to prune it again",
        "done.1": "sparse already: densify_ the model to prune it again",
    }


def test_an_embedding_that_is_pruned_through_its_head_is_not_left() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
    model[1].weight = model[0].weight
    report = prune(model, 0.5, filter_fn=lambda module, name: True)
    assert report.left == []
    assert float((model[0].weight == 0).float().mean()) == 0.5


def test_a_filter_is_named_as_the_reason() -> None:
    report: PruneReport = prune(mlp(8, 8, 8), 0.5, filter_fn=lambda module, name: name == "0")
    assert [(item.name, item.reason) for item in report.left] == [("1", "left out by filter_fn")]


def test_weights_tied_among_layers_count_as_pruned_in_all() -> None:
    model = mlp(8, 8, 8)
    model[1].weight = model[0].weight
    report = prune(model, 0.5)
    assert [row.name for row in report.layers] == ["0"]
    assert report.left == []
    assert report.zeros_of_multiply_adds == 0.5


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_inputs_or_outputs_are_no_layers_to_prune() -> None:
    with pytest.raises(UsageError, match="element fits no layer; the largest is"):
        prune(nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4)), 0.5)
