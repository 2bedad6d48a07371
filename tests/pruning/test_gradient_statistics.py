"""Statistics of gradients against autograd in float64 on torch's own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import calibration_models
import pytest
import torch
from calibration_models import bert, ids
from driver_models import bert_batches
from gradient_models import (
    MODELS,
    gradients_by_hand,
    items,
    model_of,
    prepared,
    squared_error,
    statistics_of,
)
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import prune
from sparse_engine.pruning.calibration import split_batches
from sparse_engine.pruning.gradients import statistics


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to rounding in float32, relative to the largest value."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def blocks_by_hand(gradients: list[Tensor], width: int) -> Tensor:
    """The mean of g g^T for each block, [out, blocks, width, width]."""
    out, columns = gradients[0].shape
    fisher = torch.zeros(out, -(-columns // width), width, width, dtype=torch.float64)
    for g in gradients:
        for i in range(out):
            for j in range(columns):
                for k in range(j - j % width, min(j - j % width + width, columns)):
                    fisher[i, j // width, j % width, k % width] += g[i, j] * g[i, k]
    return fisher / len(gradients)


@pytest.mark.parametrize("name", MODELS)
def test_means_over_batches(name: str) -> None:
    by_hand = gradients_by_hand(name, items(), squared_error)
    model = model_of(name)
    found = statistics_of(model, items(), "snip", loss=squared_error)
    squares = statistics_of(model, items(), "taylor", loss=squared_error)
    assert set(found) == set(squares) == set(by_hand[0])
    for layer in found:
        gradients = torch.stack([of_batch[layer] for of_batch in by_hand])
        close(found[layer]["gradient"], gradients.mean(0))
        close(squares[layer]["squared_gradient"], gradients.square().mean(0))


@pytest.mark.parametrize("width", [1, 3, 8, 50])
@pytest.mark.parametrize("name", MODELS)
def test_fisher_is_a_mean_over_single_rows(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "PENDING", 4)  # does not divide the number of rows
    rows = [(x[i : i + 1], y[i : i + 1]) for x, y in items() for i in range(len(x))]
    by_hand = gradients_by_hand(name, rows, squared_error)
    criterion = f"fisher(block={width})"
    found = statistics_of(model_of(name), items(), criterion, loss=squared_error)
    for layer, of_layer in found.items():
        gradients = [of_row[layer] for of_row in by_hand]
        close(of_layer["fisher"], blocks_by_hand(gradients, width))


def test_layers_are_taken_in_turns_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = statistics_of(bert(), bert_batches(), "fisher(block=4)")
    passes: list[int] = []
    collect = statistics.GradientStatistics._collect

    def counted(self: Any, layers: list[Any]) -> Any:
        passes.append(len(layers))
        return collect(self, layers)

    monkeypatch.setattr(statistics.GradientStatistics, "_collect", counted)
    monkeypatch.setattr(statistics, "BUDGET", 20 * 16 * 24)
    found = statistics_of(bert(), bert_batches(), "fisher(block=4)")
    assert sum(passes) == len(whole)
    assert max(passes) == 1
    for layer, of_layer in whole.items():
        assert torch.equal(found[layer]["fisher"], of_layer["fisher"])


def test_the_model_s_own_loss_where_there_are_labels() -> None:
    """Also with padding and ignored labels; a row without labels is no example."""
    batches = [
        {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
        for batch in bert_batches()
    ]
    batches[0]["labels"][2] = -100
    model = bert("BertForTokenClassification", num_labels=50)
    found = statistics_of(model, batches, "fisher")
    means = statistics_of(model, batches, "snip")
    plain = bert("BertForTokenClassification", num_labels=50).double().requires_grad_()
    names = list(found)

    def gradients(batch: dict[str, Tensor]) -> list[Tensor]:
        weights = [plain.get_parameter(f"{name}.weight") for name in names]
        return list(torch.autograd.grad(plain(**batch).loss, weights))

    of_batches = [gradients(batch) for batch in batches]
    rows = [
        gradients({key: x[i : i + 1] for key, x in batch.items()})
        for batch in batches
        for i in range(4)
        if (batch["labels"][i] != -100).any()
    ]
    assert len(rows) == 15
    for i, name in enumerate(names):
        close(means[name]["gradient"], torch.stack([g[i] for g in of_batches]).mean(0))
        squares = torch.stack([g[i] for g in rows]).square().mean(0)
        close(found[name]["fisher"].reshape(squares.shape), squares)


def test_rows_that_depend_on_each_other_are_one_example() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.lstm(x)[0]
            return found

    sequence = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(0))
    for model, count in ((TimeFirst().eval(), 1), (nn.Linear(8, 4), 5)):
        with prepared(model, [sequence], None) as (unrolled_model, _, batches, *_):
            assert len(split_batches(unrolled_model, batches)) == count


def test_items_of_a_loss_are_split_with_their_targets() -> None:
    seen: list[Any] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch)
        found: Tensor = model(batch["input"]).sum() * batch["weight"].sum() * batch["factor"]
        return found

    x, weight = torch.randn(3, 8), torch.rand(3)
    statistics_of(
        model_of("mlp"), [{"input": x, "weight": weight, "factor": 2.0}], "fisher", loss=loss
    )
    assert len(seen) == 3
    for i, item in enumerate(seen):
        assert torch.equal(item["input"], x[i : i + 1])
        assert torch.equal(item["weight"], weight[i : i + 1])
    seen.clear()
    statistics_of(
        model_of("mlp"), [{"input": x, "weight": weight[:2], "factor": 2.0}], "fisher", loss=loss
    )
    assert len(seen) == 1  # two weights for three rows: it cannot be split


def test_a_loss_of_a_tensor_gets_the_tensor() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        found: Tensor = model(batch).square().sum()
        return found

    x = items(1)[0][0]
    expected = gradients_by_hand("mlp", [(x, x)], lambda model, batch: loss(model, batch[0]))
    found = statistics_of(model_of("mlp"), [x.numpy()], "snip", loss=loss)
    close(found["0"]["gradient"], expected[0]["0"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    expected = gradients_by_hand("mlp", items(), squared_error)
    calibration = [(x.to(dtype), y.to(dtype)) for x, y in items()]
    found = statistics_of(model_of("mlp").to(dtype), calibration, "snip", loss=squared_error)
    mean = torch.stack([of_batch["0"] for of_batch in expected]).mean(0)
    assert found["0"]["gradient"].dtype == torch.float32
    error = (found["0"]["gradient"] - mean).abs().max() / mean.abs().max()
    assert error < (0.05 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ("BertForSequenceClassification", {"num_labels": 3}),
        ("BertForMaskedLM", {}),
        ("BertForQuestionAnswering", {}),
        ("BertModel", {}),
    ],
)
def test_without_labels_every_pass_draws_the_same(head: str, fields: dict[str, int]) -> None:
    runs: list[Callable[[], Any]] = [
        lambda: statistics_of(bert(head, **fields), [{"input_ids": ids(3, 6)}], "fisher")
    ] * 2
    first, second = (run() for run in runs)
    for name, of_layer in first.items():
        assert torch.equal(second[name]["fisher"], of_layer["fisher"])
        assert of_layer["fisher"].any() or "pooler" in name


def test_gpt2_whose_weights_are_transposed() -> None:
    model = calibration_models.transformers.GPT2LMHeadModel(
        calibration_models.transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=20
        )
    ).eval()
    batch = {"input_ids": ids(3, 6), "labels": ids(3, 6, seed=1)}
    found = statistics_of(model, [batch], "snip")
    loss = model(**batch).loss
    for name, of_layer in found.items():
        if name == "lm_head":
            continue  # tied to the embedding
        (gradient,) = torch.autograd.grad(
            loss, model.get_parameter(f"{name}.weight"), retain_graph=True
        )
        close(of_layer["gradient"], gradient.T)


def test_only_the_layers_that_need_gradients_get_them() -> None:
    """The loss does not depend on layer 2, which has a criterion of its own."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found: Tensor = model[0](batch[0]).square().sum()
        return found

    magnitude = [{"match": "2", "criterion": "magnitude"}]
    found = statistics_of(model_of("mlp"), items(), "taylor", loss, magnitude)
    assert {name: set(of_layer) for name, of_layer in found.items()} == {"0": {"squared_gradient"}}
    fisher = [{"match": "2", "criterion": "fisher(block=4)", "granularity": "1x3"}]
    both = statistics_of(model_of("mlp"), items(), "taylor", loss, fisher)
    assert torch.equal(both["0"]["squared_gradient"], found["0"]["squared_gradient"])
    assert both["2"]["fisher"].shape == (3, 3, 3, 3)
    model = model_of("mlp")
    arguments = {"calibration": items(), "loss": loss, "layers": ["0", "2"]}
    report = prune(model, 0.5, criterion="taylor", overrides=magnitude, **arguments)
    assert report.sparsity == pytest.approx(0.5, abs=0.02)
    with pytest.raises(UsageError, match="is zero for all weights of 2"):
        prune(model, 0.5, criterion="taylor", **arguments)
