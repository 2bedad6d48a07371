"""What the report says of rows and layers that lost nearly everything."""

from __future__ import annotations

import torch
from driver_models import mlp
from torch import nn

from sparse_engine.pruning import prune


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
