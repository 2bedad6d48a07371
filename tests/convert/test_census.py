"""The census: counts of weights, zeros and multiply-adds, dense and sparse alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.convert.census import Row, census
from sparse_engine.nn import (
    SparseConv1d,
    SparseGRUCell,
    SparseLinear,
    SparseLSTM,
    SparseMultiheadAttention,
)

transformers = pytest.importorskip("transformers")


def thinned(model: nn.Module, every: int = 2) -> nn.Module:
    """`model` with every second element of its weights at zero, and biases that are not."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1)
            if "weight" in name and parameter.dim() > 1:
                parameter.view(-1)[::every] = 0
    return model


def row(module: nn.Module) -> Row:
    """The one row of a model that is a single module."""
    (found,) = census(module).rows
    return found


KINDS: list[tuple[nn.Module, str, int, int]] = [
    (nn.Linear(6, 4), "linear", 24, 24),
    (nn.Conv1d(6, 4, 3, groups=2), "conv", 36, 36),
    (nn.Conv2d(2, 4, 3), "conv", 72, 72),
    (nn.LSTM(6, 4, 2, bidirectional=True), "recurrent", 704, 704),
    (nn.LSTM(6, 4, proj_size=2), "recurrent", 136, 136),
    (nn.GRUCell(6, 4), "cell", 120, 120),
    (nn.Embedding(6, 4), "embedding", 24, 0),
]


@pytest.mark.parametrize(("module", "kind", "weights", "work"), KINDS)
def test_single_modules(module: nn.Module, kind: str, weights: int, work: int) -> None:
    found = row(thinned(module))
    parameters = sum(p.numel() for p in module.parameters())
    assert found == Row("", kind, weights, weights // 2, work, parameters)


def test_a_norm_does_no_multiply_adds() -> None:
    assert row(nn.LayerNorm(4)) == Row("", "norm", 4, 0, 0, 8)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 12}])
def test_attention_is_its_projections(sizes: dict[str, int]) -> None:
    attention = thinned(nn.MultiheadAttention(8, 2, **sizes))
    inward, out = census(attention).rows
    weights = 8 * (8 + sizes.get("kdim", 8) + sizes.get("vdim", 8))
    assert inward == Row("", "attention", weights, weights // 2, weights, weights + 24)
    assert out == Row("out_proj", "linear", 64, 32, 64, 72)


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        (nn.Linear(6, 4), SparseLinear),
        (nn.Conv1d(6, 4, 3, groups=2), SparseConv1d),
        (nn.LSTM(6, 5, 2, bidirectional=True, proj_size=3), SparseLSTM),
        (nn.LSTM(6, 5, bias=False), SparseLSTM),
        (nn.GRUCell(6, 5), SparseGRUCell),
        (nn.MultiheadAttention(8, 2), SparseMultiheadAttention),
    ],
)
def test_a_sparse_module_counts_as_the_dense_one(dense: Any, sparse: Any) -> None:
    thinned(dense)
    assert census(sparse.from_dense(dense, "csr")).rows == census(dense).rows


def test_models_count_alike_before_and_after_sparsify() -> None:
    model = thinned(nn.Sequential(nn.Embedding(9, 6), nn.LSTM(6, 4), nn.Linear(4, 20)))
    before = census(model)
    se.sparsify_(model, se.SparseConfig(format="csr"))
    assert isinstance(model[2], SparseLinear)
    assert census(model) == before


def test_a_tied_head_works_but_is_no_parameter_of_its_own() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10))
    model[2].weight = model[0].weight  # type: ignore[index]
    thinned(model)
    counted = census(model)
    assert counted.rows[2] == Row("2", "linear", 40, 20, 40, 10, tied_to="0")
    assert counted.parameters == sum(p.numel() for p in model.parameters()) == 70
    assert counted.multiply_adds == 56
    assert counted.zeros_of_parameters == (20 + 8) / 70


def test_shares() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 5, bias=False), nn.Linear(5, 4))
    thinned(model[1])
    counted = census(model)
    assert counted.select(["1"]).zeros_of_weights == 0.5
    assert counted.zeros_of_parameters == 10 / 84
    assert counted.zeros_of_multiply_adds == 10 / 40
    assert counted.summary(["1"]) == (
        "zeros: 50.0% of these layers, 11.9% of all parameters, "
        "25.0% of multiply-adds for one token"
    )


def test_selection_takes_what_lies_below_a_name_and_nothing_else() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2)), "ab": nn.Linear(2, 3)})
    assert [found.name for found in census(model).select(["a"]).rows] == ["a.0"]


def test_fused_experts_count_the_chosen_ones() -> None:
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
        num_local_experts=4,
        num_experts_per_tok=1,
    )
    rows = {found.name: found for found in census(transformers.MixtralModel(config)).rows}
    weights = 4 * 3 * 16 * 24
    assert rows["layers.0.mlp.experts"] == Row(
        "layers.0.mlp.experts", "experts", weights, 0, weights // 4, weights
    )
    assert rows["layers.0.mlp.gate"].multiply_adds == 64


def test_experts_in_a_list_count_the_chosen_ones() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top_k = 2
            self.gate = nn.Linear(4, 8)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    counted = census(Mixture())
    assert counted.multiply_adds == 4 * 8 + 2 * 16
    assert counted.select(["experts"]).multiply_adds == 2 * 16


def test_parameters_of_any_other_module_are_counted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.ones(1, 7, 3))
            self.weight = nn.Parameter(torch.eye(3))

    assert row(Odd()) == Row("", "other", 9, 6, 9, 30)


def test_a_shared_module_counts_once() -> None:
    shared = nn.Linear(3, 3)
    counted = census(nn.Sequential(shared, shared))
    assert [found.name for found in counted.rows] == ["0"]
    assert census(nn.Identity()).zeros_of_multiply_adds == 0
