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

    def group_sums(self, values: Tensor) -> Tensor:
        """Sum of the elements of each tile.

        Args:
            values: [out, in].

        Returns:
            [ceil(out / rows), ceil(in / cols)].
        """
        rows, cols = self.size(*values.shape)
        if rows == cols == 1:
            return values
        padded = F.pad(values, (0, -values.shape[1] % cols, 0, -values.shape[0] % rows))
        return padded.view(-1, rows, padded.shape[1] // cols, cols).sum((1, 3))

    def group_sizes(self, out_features: int, in_features: int) -> Tensor:
        """Number of elements of each tile of a weight [out, in], as `group_sums` orders them."""
        rows, cols = self.size(out_features, in_features)
        heights = torch.full((ceil_div(out_features, rows), 1), rows)
        widths = torch.full((1, ceil_div(in_features, cols)), cols)
        heights[-1] -= -out_features % rows
        widths[0, -1] -= -in_features % cols
        return heights * widths

    def group_scores(self, score: Tensor) -> Tensor:
        """Mean score of the elements of each tile, without the padding of partial tiles.

        Args:
            score: [out, in].

        Returns:
            [ceil(out / rows), ceil(in / cols)].
        """
        if self.size(*score.shape) == (1, 1):
            return score
        return self.group_sums(score) / self.group_sizes(*score.shape).to(score.device)

    def spread(self, of_groups: Tensor, out_features: int, in_features: int) -> Tensor:
        """The value of its tile for each element of a weight, [out, in].

        Args:
            of_groups: [ceil(out / rows), ceil(in / cols)].
            out_features: of the weight.
            in_features: of the weight.
        """
        rows, cols = self.size(out_features, in_features)
        if rows > 1:
            of_groups = of_groups.repeat_interleave(rows, 0)
        if cols > 1:
            of_groups = of_groups.repeat_interleave(cols, 1)
        return of_groups[:out_features, :in_features]

    def mask(self, score: Tensor, drop: int, per_row: bool = False) -> Tensor:
        groups = self.group_scores(score)
        kept = _keep_best_per_row(groups, drop) if per_row else _keep_best(groups, drop)
        return self.spread(kept, *score.shape)


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
