"""Weights that are already zero count towards the requested sparsity, and stay zero."""

from __future__ import annotations

import itertools

import pytest
import torch
from driver_models import mean_square
from torch import Tensor, nn

from sparse_engine.pruning import CRITERIA, prune
from sparse_engine.pruning.granularity import Tiles, parse_granularity

OF_WEIGHTS = [criterion for criterion in CRITERIA if not criterion.needs_structures]
NAMES = [criterion.name for criterion in OF_WEIGHTS]
OF_PARTS = [criterion.name for criterion in OF_WEIGHTS if not criterion.needs_whole_rows]
SHAPE = (24, 100)  # more columns than one slice of SparseGPT


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(SHAPE[1], SHAPE[1], generator=generator)
    return [torch.randn(60, SHAPE[1], generator=generator) @ mix for _ in range(3)]


def layer_with_zeros(granularity: str, share: float, position: str) -> tuple[nn.Linear, Tensor]:
    """A layer with a share of its groups zero, and the mask of these zeros."""
    torch.manual_seed(1)
    tiles = parse_granularity(granularity)
    assert isinstance(tiles, Tiles)
    score = torch.rand(SHAPE)
    rows, cols = tiles.size(*SHAPE)
    if position == "rows":  # some rows lose nearly everything, others nothing
        score += torch.arange(SHAPE[0])[:, None] // rows
    elif position == "columns":
        score += torch.arange(SHAPE[1])[None] // cols
    linear = nn.Linear(SHAPE[1], SHAPE[0])
    keep = tiles.mask(score, round(share * tiles.groups(*SHAPE)))
    with torch.no_grad():
        linear.weight *= keep
    return linear, ~keep


@pytest.mark.parametrize("position", ["anywhere", "rows", "columns"])
@pytest.mark.parametrize("recovery", [None, "least_squares"])
@pytest.mark.parametrize(
    ("criterion", "granularity"),
    [
        *itertools.product(OF_PARTS, ["element", "4x1", "2x5", "allx1"]),
        *itertools.product(NAMES, ["1xall"]),
    ],
)
def test_zeros_count_first(
    criterion: str, granularity: str, recovery: str | None, position: str
) -> None:
    tiles = parse_granularity(granularity)
    groups = tiles.groups(*SHAPE)
    each = SHAPE[0] * SHAPE[1] // groups
    for sparsity in (0.3, 0.7):
        linear, zero = layer_with_zeros(granularity, 0.5, position)
        prune(linear, sparsity, granularity, criterion, recovery, inputs(), loss=mean_square)
        assert not linear.weight[zero].any()
        assert int((linear.weight == 0).sum()) == each * round(max(0.5, sparsity) * groups)


@pytest.mark.parametrize("criterion", OF_PARTS)
def test_a_pattern_that_is_there_is_kept(criterion: str) -> None:
    linear = nn.Linear(SHAPE[1], SHAPE[0])
    prune(linear, granularity="2:4")
    there = linear.weight != 0
    prune(linear, None, "2:4", criterion, None, inputs(), loss=mean_square)
    assert torch.equal(linear.weight != 0, there)
