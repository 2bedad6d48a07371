"""Gradients of layer outputs: with the inputs they give the gradients of the weights."""

from __future__ import annotations

import pytest
import torch
from calibration_models import bert
from driver_models import bert_batches, hooks
from gradient_models import (
    MODELS,
    Tied,
    gradients_by_hand,
    items,
    model_of,
    outputs_of,
    squared_error,
)
from torch import Tensor, nn


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tied"])
def test_outputs_and_inputs_give_the_gradients_of_the_weights(name: str) -> None:
    model = model_of(name)
    expected = gradients_by_hand(name, items(), squared_error)
    for found, by_hand in zip(outputs_of(model, items(), squared_error), expected, strict=True):
        for layer, gradient in by_hand.items():
            product = found[layer].gradients.T @ found[layer].inputs
            torch.testing.assert_close(product.double(), gradient, rtol=1e-4, atol=1e-7)
    assert hooks(model) == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_tied_weight_counts_in_the_layer_that_runs() -> None:
    model = model_of("tied")
    assert isinstance(model, Tied)
    (found,) = outputs_of(model, items(1), squared_error)
    assert list(found) == ["a"]  # b has the same weight, and is pruned with it


def test_gradients_are_those_of_finite_differences() -> None:
    """The sum over tokens of an output's gradient is that of the bias."""
    model, (item,) = model_of("mlp").double(), items(1)
    item = (item[0].double(), item[1].double())
    (found,) = outputs_of(model, [item], squared_error)
    for layer in ("0", "2"):
        bias = model.get_parameter(f"{layer}.bias")
        for i in range(len(bias)):
            losses = []
            for step in (1e-6, -2e-6):
                with torch.no_grad():
                    bias[i] += step
                losses.append(squared_error(model, item).item())
            with torch.no_grad():
                bias[i] += 1e-6
            slope = (losses[0] - losses[1]) / 2e-6
            assert float(found[layer].gradients[:, i].sum()) == pytest.approx(slope, abs=1e-7)


def test_padding_is_left_out() -> None:
    """Four texts with 26 of 36 tokens: the others are seen neither by the loss nor afterwards."""
    batch = bert_batches()[1]
    (found,) = outputs_of(bert(), [batch])
    tokens = int(batch["attention_mask"].sum())
    tokens_of = {name: len(t.inputs) for name, t in found.items() if "pooler" not in name}
    assert set(tokens_of.values()) == {tokens}
    batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 7, batch["input_ids"])
    (again,) = outputs_of(bert(), [batch])
    for name in tokens_of:
        torch.testing.assert_close(again[name].gradients, found[name].gradients)


def test_layers_that_the_loss_does_not_depend_on_are_missing() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.idle = (nn.Linear(8, 3) for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(x), self.unused(x)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        found: Tensor = model(batch)[0].square().sum()
        return found

    (found,) = outputs_of(Branches(), [torch.ones(2, 8)], loss)
    assert list(found) == ["used"]
