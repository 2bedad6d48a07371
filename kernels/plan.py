"""Work partition of a BSR weight: its rows of blocks are distributed among programs, once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .launch import processors

# Bytes that one processor reads in the time of a launch (2 us at 32 bytes a nanosecond).
SHARE_BYTES = 64 * 1024


@dataclass(frozen=True)
class BsrPlan:
    """The partition, made once for a weight, so that a call does not synchronise with the host.

    Attributes:
        order: int32 [block rows of y], the row with the most blocks first.
        items: int32 [items, 4], the parts that rows are split into for few tokens, largest first:
            block row, first block, one past the last, number of the part. None where no row is
            split.
        parts: int32 [block rows], the number of parts of each row; None where no row is split.
        most: The largest number of parts.
    """

    order: Tensor
    items: Tensor | None = None
    parts: Tensor | None = None
    most: int = 1


def plan_bsr(
    pointers: Tensor, block_bytes: int, gated: bool = False, programs: int | None = None
) -> BsrPlan:
    """A balanced partition for a BSR weight.

    Rows are split where there are fewer of them than programs, or where one has more than twice its
    fair share of the blocks. A part is a fair share, but at least SHARE_BYTES.

    Args:
        pointers: int32 [block rows + 1], where each row of blocks starts.
        block_bytes: Bytes of the values of a block.
        gated: Whether the second half of the rows gates the first.
        programs: Number of programs that should run at once; by default two on each processor.

    Returns:
        The partition, on the device of `pointers`.
    """
    counts = pointers.diff().long().cpu()
    programs = programs or 2 * processors(pointers.device)
    rows, total = len(counts), int(counts.sum())
    weights = counts.view(2, -1).sum(0) if gated and rows % 2 == 0 else counts
    order = weights.argsort(descending=True, stable=True).int().to(pointers.device)
    share = max(1, -(-total // programs), SHARE_BYTES // block_bytes)
    heaviest = int(counts.max()) if rows else 0
    if heaviest <= share or (rows >= programs and heaviest <= 2 * share):
        return BsrPlan(order)
    parts = (-(-counts // share)).clamp(min=1)
    row = torch.arange(rows).repeat_interleave(parts)
    part = torch.arange(len(row)) - (parts.cumsum(0) - parts)[row]
    starts = pointers[:-1].long().cpu()[row]
    begin = starts + counts[row] * part // parts[row]
    end = starts + counts[row] * (part + 1) // parts[row]
    items = torch.stack([row, begin, end, part], 1)
    items = items[(end - begin).argsort(descending=True, stable=True)].int()
    most = int(parts.max())
    return BsrPlan(order, items.to(pointers.device), parts.int().to(pointers.device), most)
