"""Groups that are tiles of a weight: the common part of Element and Block."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.pruning.granularity.base import Granularity

Size: TypeAlias = int | Literal["all"]
"""The height or width of a tile; "all" is that of the weight."""


class Tiles(Granularity):
    """Tiles of `rows` outputs x `cols` inputs; the tiles of a weight form a grid."""

    rows: Size
    cols: Size

    def size(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Height and width of a tile in a weight [out, in]."""
        rows = out_features if self.rows == "all" else self.rows
        return rows, self.span(in_features)

    def span(self, in_features: int) -> int:
        return in_features if self.cols == "all" else self.cols

    def groups(self, out_features: int, in_features: int) -> int:
        rows, cols = self.size(out_features, in_features)
        return ceil_div(out_features, rows) * ceil_div(in_features, cols)

    def fits(self, out_features: int, in_features: int) -> bool:
        rows, cols = self.size(out_features, in_features)
        return out_features >= rows and in_features >= cols

    def group_scores(self, score: Tensor) -> Tensor:
        """Mean score of the elements of each tile, without the padding of partial tiles.

        Args:
            score: [out, in].

        Returns:
            [ceil(out / rows), ceil(in / cols)].
        """
        out_features, in_features = score.shape
        rows, cols = self.size(out_features, in_features)
        if rows == cols == 1:
            return score
        down, across = -out_features % rows, -in_features % cols
        padded = F.pad(score, (0, across, 0, down))
        sums = padded.view(-1, rows, padded.shape[1] // cols, cols).sum((1, 3))
        heights = torch.full((sums.shape[0], 1), rows, device=score.device)
        widths = torch.full((1, sums.shape[1]), cols, device=score.device)
        heights[-1] -= down
        widths[0, -1] -= across
        return sums / (heights * widths)

    def mask(self, score: Tensor, drop: int, per_row: bool = False) -> Tensor:
        groups = self.group_scores(score)
        kept = _keep_best_per_row(groups, drop) if per_row else _keep_best(groups, drop)
        rows, cols = self.size(*score.shape)
        if rows > 1:
            kept = kept.repeat_interleave(rows, 0)
        if cols > 1:
            kept = kept.repeat_interleave(cols, 1)
        return kept[: score.shape[0], : score.shape[1]]


def ceil_div(a: int, b: int) -> int:
    """Quotient of two integers, rounded up."""
    return -(-a // b)


def _keep_best(groups: Tensor, drop: int) -> Tensor:
    """Keep all groups but the `drop` of the lowest scores; bool, the shape of `groups`."""
    kept = torch.ones(groups.numel(), dtype=torch.bool, device=groups.device)
    kept[groups.flatten().topk(drop, largest=False, sorted=False).indices] = False
    return kept.view_as(groups)


def _keep_best_per_row(groups: Tensor, drop: int) -> Tensor:
    """Remove the same number of groups from every row, but groups of score 0 before all others.

    A row with more zeros than its share loses exactly these, and the other rows lose fewer. What
    the division leaves over is removed from the rows where the next loss is least.

    Args:
        groups: scores, [rows, groups per row].
        drop: number of groups to remove from all rows together.

    Returns:
        bool [rows, groups per row], False where a group is removed.
    """
    zeros = (groups == 0).sum(1)
    if int(zeros.sum()) >= drop:
        return _keep_best(groups, drop)
    low, high = 0, groups.shape[1]  # the largest loss per row that removes at most `drop` in all
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(zeros.clamp(min=middle).sum()) <= drop
        low, high = (middle, high) if fits else (low, middle - 1)
    losses = zeros.clamp(min=low)
    ordered = groups.sort(dim=1, stable=True)
    if extra := drop - int(losses.sum()):
        following = ordered.values.gather(1, losses.clamp(max=groups.shape[1] - 1)[:, None])[:, 0]
        # Rows that lose only zeros have already lost more than their share.
        following = following.masked_fill(zeros > low, torch.inf)
        losses[following.topk(extra, largest=False).indices] += 1
    removed = torch.arange(groups.shape[1], device=groups.device) < losses[:, None]
    return torch.empty_like(removed).scatter_(1, ordered.indices, ~removed)
