"""What the report says of rows and layers that lost nearly everything."""

from __future__ import annotations

import pytest
import torch
from driver_models import mlp, same, state
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import Block, Element, parse_granularity, prune


def with_small_rows() -> nn.Sequential:
    model = mlp()
    with torch.no_grad():
        model[0].weight[:6] *= 1e-3
    return model


def test_empty_rows_are_counted() -> None:
    report = prune(with_small_rows(), 0.5)
    assert report.warnings == ["0: more than 25% of the rows have no weight left"]


def test_whole_rows_are_no_surprise() -> None:
    assert not prune(with_small_rows(), 0.5, "1xall").warnings


def test_a_layer_that_nearly_vanishes_is_named() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight *= 1e-3
        model[0].weight[0, 0] = 1.0
    report = prune(model, criterion="magnitude(threshold=0.02)")
    assert "0: more than 98.0% of the weights are gone" in report.warnings
    assert not prune(mlp(), 0.985, allocator="uniform").layers[0].sparsity < 0.98
    assert "gone" not in str(prune(mlp(), 0.985).warnings)


@pytest.mark.parametrize("criterion", ["magnitude", "coupled"])
@pytest.mark.parametrize("text", ["element", "4x1", "3x2", "allx1"])
def test_every_row_of_groups_can_keep_one(criterion: str, text: str) -> None:
    granularity = parse_granularity(text)
    assert isinstance(granularity, Block | Element)
    model, plain = with_small_rows(), with_small_rows()
    sparsity = 0.7
    prune(model, sparsity, text, f"{criterion}(keep_rows=True)")
    prune(plain, sparsity, text, criterion)
    for i in (0, 2):
        scores = granularity.group_scores(model[i].weight.detach().abs())
        assert int((scores == 0).sum()) == round(sparsity * scores.numel())
        assert (scores > 0).any(1).all()
    if text == "element":
        assert not (plain[0].weight != 0).any(1).all()
        # The kept weights of the small rows are their largest.
        dense = with_small_rows()[0].weight[:6].abs()
        kept = model[0].weight[:6] != 0
        assert torch.equal(kept.float().argmax(1), dense.argmax(1))
        assert kept.sum(1).tolist() == [1] * 6


def test_rows_of_zeros_stay_empty() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[:2] = 0
    prune(model, 0.8, criterion="magnitude(keep_rows=True)")
    assert not model[0].weight[:2].any()
    assert model[0].weight[2:].any(1).all()
    assert int((model[0].weight == 0).sum()) == round(0.8 * 240)


def test_more_than_the_rows_can_lose_is_refused() -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(UsageError, match="keep_rows keeps one of the 12 groups of every row"):
        prune(model, 0.95, criterion="magnitude(keep_rows=True)")
    with pytest.raises(UsageError, match="keep_rows keeps one of the 1 groups of every row"):
        prune(model, 0.5, "1xall", "coupled(keep_rows=True)")
    assert same(before, state(model))
    report = prune(model, criterion="magnitude(threshold=1000.0, keep_rows=True)")
    assert [row.rows_kept for row in report.layers] == [20, 7]
    assert [int((model[i].weight != 0).sum()) for i in (0, 2)] == [20, 7]
