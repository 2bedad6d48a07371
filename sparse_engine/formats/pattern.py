"""Pattern: what the zeros of a weight are made of, found by measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import UsageError
from sparse_engine.formats.bsr import block_sides
from sparse_engine.formats.nm import most_in_group

# Blocks have sides of powers of two up to this one.
MAX_SIDE = 64
GROUPS = (4, 8, 16, 32)
# Blocks and groups need not be full everywhere: weights that are kept may be zero by chance.
FULL = 0.98
# Below this share of zeros there is no pattern: random blocks would be as full.
MIN_SPARSITY = 0.05


@dataclass(frozen=True)
class Pattern:
    """The pattern of the zeros of a weight [out, in].

    Attributes:
        sparsity: Share of zeros, 0..1.
        rows: Rows of the largest block that the non-zeros are made of; `out` for whole columns.
        cols: Columns of it; `in` for whole rows.
        fill: Share of non-zeros in the blocks that hold any.
        keep: Of each group of `of` neighbours along the inputs so many are kept; 0 for no N:M.
        of: Size of the groups; 0 for no N:M.
        shape: (out, in).
    """

    sparsity: float
    rows: int
    cols: int
    fill: float
    keep: int
    of: int
    shape: tuple[int, int]

    @classmethod
    def of_weight(cls, weight: Tensor) -> Self:
        """Measure a weight.

        Of the blocks that are filled to FULL the one with the most elements is reported, and among
        those the fullest. A pattern of larger blocks fills smaller ones that divide them too, so
        the search ends where blocks are no longer full.

        Args:
            weight: [out, in].

        Raises:
            UsageError: It is not a matrix.

        >>> str(Pattern.of_weight(weight))
        '4x1'
        """
        if weight.dim() != 2:
            raise UsageError(f"weight: expected 2 dimensions [out, in], got {list(weight.shape)}")
        weight = weight.detach()
        shape = weight.shape[0], weight.shape[1]
        kept = weight != 0
        count = int(kept.sum())
        sparsity = 1 - count / kept.numel() if kept.numel() else 0.0
        block, fill, nm = (1, 1), 1.0, (0, 0)
        if sparsity >= MIN_SPARSITY and count:
            full = {(1, 1): 1.0, **dict(_full_blocks(kept, count))}
            block = max(full, key=lambda sides: (sides[0] * sides[1], full[sides]))
            fill, nm = full[block], _groups(weight, count)
        return cls(sparsity, *block, fill, *nm, shape)

    @property
    def block(self) -> str:
        """Name of the block: "element", "4x1", "rows", "columns", "dense" or "zero"."""
        if self.sparsity == 1:
            return "zero"
        if self.sparsity < MIN_SPARSITY:
            return "dense"
        sides = self.rows, self.cols
        whole = {(1, 1): "element", (1, self.shape[1]): "rows", (self.shape[0], 1): "columns"}
        return whole.get(sides, f"{self.rows}x{self.cols}")

    @property
    def nm(self) -> str:
        """ "2:4" for keep 2 of 4; "" for no N:M."""
        return f"{self.keep}:{self.of}" if self.of else ""

    def __str__(self) -> str:
        """The name of the block, or of N:M where single elements are kept."""
        return self.nm if self.block == "element" and self.nm else self.block


def _full_blocks(kept: Tensor, count: int) -> Iterator[tuple[tuple[int, int], float]]:
    """Blocks of more than one element that are filled to FULL, and their fill."""
    out_features, in_features = kept.shape
    for dim, sides in enumerate(((out_features, 1), (1, in_features))):
        fill = count / (int(kept.any(dim).sum()) * kept.shape[dim])
        if fill >= FULL and kept.shape[dim] > 1:
            yield sides, fill
    rows, tall = 1, kept
    while rows <= min(MAX_SIDE, out_features):
        cols, occupied = 1, tall
        while cols <= min(MAX_SIDE, in_features):
            fill = count / _covered(occupied, kept, rows, cols)
            if fill < FULL:
                break
            yield (rows, cols), fill
            cols, occupied = 2 * cols, _either(occupied, 1)
        if cols == 1:  # blocks with more rows are no fuller
            return
        rows, tall = 2 * rows, _either(tall, 0)


def _either(occupied: Tensor, dim: int) -> Tensor:
    """Whether either of two neighbours along `dim` is set."""
    if occupied.shape[dim] % 2:
        occupied = pad(occupied, (0, 1) if dim else (0, 0, 0, 1))
    pairs = occupied.unflatten(dim, (-1, 2))
    return pairs.any(dim + 1)


def _covered(occupied: Tensor, kept: Tensor, rows: int, cols: int) -> float:
    """Elements of the weight in the blocks that are set; padding is not counted."""
    heights = block_sides(kept.shape[0], rows, kept.device)
    widths = block_sides(kept.shape[1], cols, kept.device)
    by_row = torch.stack([row.double() @ widths for row in occupied.split(1)]).flatten()
    return float(heights @ by_row)


def _groups(weight: Tensor, count: int) -> tuple[int, int]:
    """(keep, of) of the smallest groups that are filled to FULL; (0, 0) for none."""
    for of in GROUPS:
        if weight.shape[1] % of:
            continue
        keep = most_in_group(weight, of)
        if keep < of and count >= FULL * keep * weight.numel() / of:
            return keep, of
    return 0, 0
