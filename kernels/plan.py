"""Who does what: the rows of blocks of a weight shared out among programs, once for a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .launch import processors

# What one processor reads while another launch would begin (2 us at 32 bytes a nanosecond).
SHARE_BYTES = 64 * 1024


@dataclass(frozen=True)
class BsrPlan:
    """What is worked out once for a weight, so that a call needs neither the host nor its memory.

    order: int32 [block rows of y], the heaviest first. items: int32 [items, 4], the parts that rows are
    cut into for few tokens, heaviest first: block row, first block, one past the last, number of the
    part; without items no row is cut. parts: int32 [block rows], how many a row has.
    """

    order: Tensor
    items: Tensor | None = None
    parts: Tensor | None = None
    most: int = 1
    """Parts of the row that has most."""


def plan_bsr(
    pointers: Tensor, block_bytes: int, gated: bool = False, programs: int | None = None
) -> BsrPlan:
    """Balanced work for a weight with these pointers [block rows + 1], on their device.

    programs: how many should run at once; by default two on each processor. Where there are fewer rows,
    or one is more than twice a fair share, rows are cut into parts of a fair share, but not of less
    than SHARE_BYTES.
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
