"""Granularities: text forms, exact counts, padding of partial groups, patterns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driver_models import mean_square
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine import formats
from sparse_engine.errors import UsageError
from sparse_engine.pruning import (
    CRITERIA,
    NM,
    Block,
    Element,
    Granularity,
    parse_granularity,
    prune,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("element", Element()),
        ("4x1", Block(4, 1)),
        ("16x16", Block(16, 16)),
        ("1xall", Block(1, "all")),
        ("64xall", Block(64, "all")),
        ("allx1", Block("all", 1)),
        ("2:4", NM(2, 4)),
    ],
)
def test_text_form_goes_both_ways(text: str, expected: object) -> None:
    assert parse_granularity(text) == expected
    assert str(expected) == text
    assert parse_granularity(parse_granularity(text)) == expected


@pytest.mark.parametrize("text", ["", "4", "4x", "x1", "elements", "2:", "-1x2", "1x1x1", "1xal"])
def test_unknown_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="granularity"):
        parse_granularity(text)


@pytest.mark.parametrize("text", ["0x1", "4x0", "0:4", "4:4", "5:4"])
def test_impossible_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        parse_granularity(text)


@pytest.mark.parametrize("block", [("all", "all"), ("every", 1), (1.5, 1)])
def test_blocks_without_a_size_or_a_remainder_are_refused(block: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="block"):
        Block(*block)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (13, 1), (7, 11), (16, 16), (17, 31)])
@pytest.mark.parametrize("granularity", [Element(), Block(4, 1), Block(1, 4), Block(3, 5)], ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_mask_drops_exactly_the_quota(
    granularity: Element | Block, shape: tuple[int, int], sparsity: float, per_row: bool
) -> None:
    torch.manual_seed(0)
    drop = granularity.quota(*shape, sparsity)
    groups = granularity.groups(*shape)
    assert drop == min(round(sparsity * groups), groups - 1)
    keep = granularity.mask(torch.rand(shape), drop, per_row)
    assert keep.shape == shape
    assert keep.dtype == torch.bool
    rows, cols = granularity.size(*shape)
    corners = keep[::rows, ::cols]
    assert corners.numel() == groups
    assert int((~corners).sum()) == drop
    tiled = corners.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    assert torch.equal(keep, tiled[: shape[0], : shape[1]])


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shape", [(2, 13), (13, 2), (7, 11), (17, 31)])
@pytest.mark.parametrize("text", ["1xall", "3xall", "allx1", "allx4"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_all_is_the_size_of_the_weight(
    text: str, shape: tuple[int, int], sparsity: float, per_row: bool
) -> None:
    torch.manual_seed(0)
    granularity = parse_granularity(text)
    assert isinstance(granularity, Block)
    rows, columns = granularity.rows, granularity.cols
    same = Block(shape[0] if rows == "all" else rows, shape[1] if columns == "all" else columns)
    assert granularity.groups(*shape) == same.groups(*shape)
    assert granularity.span(shape[1]) == same.span(shape[1])
    drop = granularity.quota(*shape, sparsity)
    assert drop < granularity.groups(*shape)
    score = torch.rand(shape)
    torch.testing.assert_close(granularity.group_scores(score), same.group_scores(score))
    keep = granularity.mask(score, drop, per_row)
    assert torch.equal(keep, same.mask(score, drop, per_row))
    lines = keep if columns == "all" else keep.T  # every row or column is kept or removed whole
    assert torch.equal(lines.any(1), lines.all(1))
    assert granularity.has_whole_rows == (columns == "all")


def test_a_layer_that_is_one_group_is_left() -> None:
    assert Block(1, "all").fits(2, 5)
    assert not Block(1, "all").fits(1, 5)
    assert not Block("all", 1).fits(5, 1)
    assert not Block(64, "all").fits(64, 5)
    assert not Block(64, "all").fits(3, 5)


def test_per_row_spreads_evenly_and_takes_the_lowest_of_each_row() -> None:
    torch.manual_seed(0)
    score = torch.rand(6, 10) * torch.tensor([1, 10, 100, 1, 10, 100])[:, None]
    keep = Element().mask(score, drop=27, per_row=True)
    lost = (~keep).sum(1)
    next_loss = score.sort(dim=1).values[:, 4]
    assert lost.tolist() == (4 + (next_loss <= next_loss.median())).tolist()
    for row in range(6):
        assert score[row][keep[row]].min() > score[row][~keep[row]].max()


def test_the_lowest_scores_leave() -> None:
    score = torch.tensor([[5.0, 1.0, 4.0], [3.0, 0.5, 2.0]])
    expected = torch.tensor([[True, False, True], [True, False, True]])
    assert torch.equal(Element().mask(score, 2), expected)


def test_partial_tiles_are_scored_by_the_mean_of_their_real_elements() -> None:
    torch.manual_seed(0)
    score = torch.rand(5, 7)
    groups = Block(2, 3).group_scores(score)
    assert groups.shape == (3, 3)
    for i in range(3):
        for j in range(3):
            real = score[2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
            torch.testing.assert_close(groups[i, j], real.mean())


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 5)])
@pytest.mark.parametrize("width", [1, 3, 4, 8, 13])
def test_nm_keeps_the_best_of_every_group(keep: int, of: int, width: int) -> None:
    torch.manual_seed(0)
    score = torch.rand(5, width)
    mask = NM(keep, of).mask(score)
    assert mask.shape == score.shape
    for row in range(5):
        for start in range(0, width, of):
            part, kept = score[row, start : start + of], mask[row, start : start + of]
            assert int(kept.sum()) == min(keep, len(part))
            if not kept.all():
                assert part[kept].min() > part[~kept].max()


def test_nm_dictates_its_sparsity() -> None:
    assert NM(keep=1, of=4).fixed_sparsity == 0.75
    assert Element().fixed_sparsity is None


def test_a_stored_matrix_gives_its_pattern() -> None:
    packed = NM.from_dense(torch.eye(8), keep=1, of=4)
    assert parse_granularity(packed) == NM(1, 4)
    full = formats.NM.from_dense(torch.eye(8), keep=4, of=4)
    with pytest.raises(UsageError, match="less than 4"):
        parse_granularity(full)


def test_fits() -> None:
    assert Block(4, 1).fits(4, 1)
    assert not Block(4, 1).fits(3, 100)
    assert not Block(1, 4).fits(100, 3)
    assert not NM(2, 4).fits(100, 3)
    assert Element().fits(1, 1)


class Row(Granularity):
    """Whole rows of a weight: a group spans all columns."""

    @classmethod
    def parse(cls, text: str) -> Row | None:
        return cls() if text == "row" else None

    has_whole_rows = True

    def span(self, in_features: int) -> int:
        return in_features

    def groups(self, out_features: int, in_features: int) -> int:
        return out_features

    def fits(self, out_features: int, in_features: int) -> bool:
        return True

    def group_scores(self, score: Tensor) -> Tensor:
        return score.mean(1, keepdim=True)

    def mask(self, score: Tensor, drop: int, per_row: bool = False) -> Tensor:
        kept = torch.ones(len(score), dtype=torch.bool)
        kept[self.group_scores(score)[:, 0].topk(drop, largest=False).indices] = False
        return kept[:, None].repeat(1, score.shape[1])


@pytest.mark.parametrize("allocator", ["uniform", "lamp"])
@pytest.mark.parametrize("recovery", [None, "least_squares"])
@pytest.mark.parametrize(
    "criterion", [known.name for known in CRITERIA if not known.needs_structures]
)
def test_an_own_granularity_works_with_every_criterion(
    criterion: str, recovery: str | None, allocator: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 20), nn.Linear(20, 8))  # more columns than one slice
    x = torch.randn(40, 300)
    prune(model, 0.5, Row(), criterion, recovery, [x], allocator, loss=mean_square)
    removed = [(layer.weight == 0).all(1) for layer in model]
    assert sum(int(rows.sum()) for rows in removed) == 14
    for layer, rows in zip(model, removed, strict=True):
        assert layer.weight[~rows].all()


@pytest.mark.parametrize(("name", "block"), [("row", Block(1, "all")), ("column", Block("all", 1))])
def test_rows_and_columns_have_names(name: str, block: Block) -> None:
    assert parse_granularity(name) == block
    assert {"row": se.Row(), "column": se.Column()}[name] == block
