"""Which layers `prune` changes: heads, filters, ties, layers that do not run, attention."""

from __future__ import annotations

import pytest
import torch
from calibration_models import bert
from driver_models import batches, bert_batches, state
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune


def test_bert_leaves_embeddings_norms_and_heads_alone() -> None:
    model = bert("BertForSequenceClassification")
    before = state(model)
    report = prune(model, 0.5, "4x1", "sparsegpt", "least_squares", bert_batches())
    assert len(report.layers) == 12
    changed = {
        name for name, value in model.state_dict().items() if not (value == before[name]).all()
    }
    pruned = {row.name for row in report.layers}
    assert {name.rpartition(".")[0] for name in changed} == pruned
    assert all(".encoder.layer." in f".{name}" for name in pruned)


def test_filter_decides_on_every_linear() -> None:
    model = bert("BertForSequenceClassification")
    asked = []

    def only_head(module: nn.Module, name: str) -> bool:
        asked.append(name)
        return name in ("classifier", "bert.pooler.dense")

    report = prune(
        model,
        0.5,
        criterion="wanda",
        recovery="least_squares",
        calibration=bert_batches(),
        filter_fn=only_head,
    )
    assert len(asked) == 14
    assert [row.name for row in report.layers] == ["bert.pooler.dense", "classifier"]
    assert int((model.classifier.weight == 0).sum()) == 16


def test_a_filter_may_add_layers_outside_of_stacks() -> None:
    model = bert("BertForSequenceClassification")
    report = prune(
        model,
        0.5,
        recovery="least_squares",
        calibration=bert_batches(),
        filter_fn=lambda module, name: True,
    )
    assert len(report.layers) == 14
    assert report.layers[-1].name == "classifier"
    assert all(row.sparsity == 0.5 for row in report.layers)


def test_heads_are_left_alone_in_models_without_stacks() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Linear(12, 8))
    model.add_module("score", nn.Linear(8, 8))
    model.add_module("embeddings", nn.Sequential(nn.Linear(8, 3)))
    assert [row.name for row in prune(model, 0.5).layers] == ["body"]


def test_tied_weights_are_pruned_once() -> None:
    tied = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    tied[2].weight = tied[0].weight
    report = prune(
        tied, 0.5, criterion="sparsegpt", recovery="least_squares", calibration=batches(20)
    )
    assert [row.name for row in report.layers] == ["0"]
    assert tied[2].weight is tied[0].weight
    assert int((tied[0].weight == 0).sum()) == 200


def test_layers_that_do_not_run_are_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(12, 8)
            self.idle = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            used: Tensor = self.used(x)
            return used

    model = Idle()
    before = model.idle.weight.clone()
    report = prune(model, 0.5, recovery="least_squares", calibration=batches())
    assert [layer.name for layer in report.layers] == ["used"]
    assert [left.name for left in report.left] == ["idle"]
    assert "idle did not run on the calibration inputs" in str(report)
    assert torch.equal(model.idle.weight, before)
    assert prune(Idle(), 0.5).sparsity == 0.5
    with pytest.raises(UsageError, match=r"idle did not run .* nor did any other layer"):
        prune(
            Idle(),
            0.5,
            recovery="least_squares",
            calibration=batches(),
            filter_fn=lambda module, name: name == "idle",
        )


def test_attention_is_pruned_with_the_layers_around_it() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = [torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))]
    report = prune(model, 0.5, "2x1", "sparsegpt", "least_squares", x)
    parts = [*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "linear1", "linear2"]
    assert [row.name for row in report.layers] == [
        f"layers.{i}.{part}" for i in (0, 1) for part in parts
    ]
    assert int((model.layers[1].self_attn.in_proj_weight == 0).sum()) == 16 * 48 // 2
    assert report.zeros_of_multiply_adds == 0.5
