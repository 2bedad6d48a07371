"""Modules that are not unrolled, and computed weights, which become plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.pruning.unrolled import left_alone, unrolled


def masked(module: Any, name: str) -> Any:
    from torch.nn.utils import prune

    return prune.random_unstructured(module, name, 0.5)


class Own(nn.Conv1d):
    """A subclass, which may compute something else."""


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Own(4, 4, 3), "it is a subclass of torch.nn.Conv1d"),
        (nn.Conv1d(8, 8, 3, groups=8), "it is depthwise"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_are_left_alone_are_named(module: nn.Module, why: str) -> None:
    model = nn.Sequential(module)
    names = list(dict(model.named_modules()))
    assert why in left_alone(model)["0"]
    with unrolled(model):
        assert list(dict(model.named_modules())) == names


@pytest.mark.parametrize(
    "module",
    [
        masked(nn.Conv1d(8, 8, 3), "weight"),
        masked(nn.MultiheadAttention(8, 2), "in_proj_weight"),
        masked(nn.LSTM(8, 8), "weight_hh_l0"),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3)),
        nn.utils.parametrizations.weight_norm(nn.GRUCell(8, 8), "weight_hh"),
    ],
    ids=["mask-conv", "mask-attention", "mask-lstm", "norm-conv", "norm-cell"],
)
def test_weights_that_are_computed_are_folded_and_pruned(module: nn.Module) -> None:
    report = se.prune(nn.Sequential(module), 0.75, filter_fn=lambda layer, name: True)
    weights = [p for p in module.parameters() if p.dim() > 1]
    assert sum(layer.shape[0] * layer.shape[1] for layer in report.layers) == sum(
        weight.numel() for weight in weights
    )
    assert [layer.sparsity for layer in report.layers] == [0.75] * len(report.layers)
    assert all(int((weight == 0).sum()) == 0.75 * weight.numel() for weight in weights)


def test_attention_with_a_projection_of_its_own_is_left_alone() -> None:
    layer = nn.MultiheadAttention(8, 2)
    layer.out_proj = nn.Sequential()
    assert left_alone(layer) == {"": "its out_proj is a Sequential"}


@pytest.mark.parametrize(
    ("module", "of"),
    [
        (nn.Conv1d(4, 4, 3, device="meta"), "0.weight has no values"),
        (nn.MultiheadAttention(8, 2, device="meta"), "0.in_proj_weight has no values"),
    ],
    ids=["conv", "attention"],
)
def test_weights_without_values_are_one_line(module: nn.Module, of: str) -> None:
    with pytest.raises(UsageError, match=of) as caught:
        se.prune(nn.Sequential(module, nn.Linear(8, 8)), 0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_int8_modules_of_torch_are_one_line(kind: Any) -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3), kind(8, 8))
    quantized = torch.ao.quantization.quantize_dynamic(model, {kind})
    with pytest.raises(UsageError, match="1 is quantised already") as caught:
        se.prune(quantized, 0.5)
    assert "\n" not in str(caught.value)
