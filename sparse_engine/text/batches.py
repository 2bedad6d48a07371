"""Rows of token ids as padded batches, for calibration, tasks and serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def batches_by_length(lengths: Sequence[Any], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, at most `batch_size` at a time, the shortest first.

    Args:
        lengths: a sort key for each row, as its length.
        batch_size: rows in a batch.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, int64 [rows, longest]; the mask is zero for padding on the
    right.
    """
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
