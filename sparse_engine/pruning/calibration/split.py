"""Splits calibration batches into their rows, for statistics of single examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration.batch import IGNORED, Batch
from sparse_engine.pruning.calibration.merge import (
    are_independent,
    shape_of,
    signature_of,
    tensors_of,
)


@torch.no_grad()
def split_batches(model: nn.Module, batches: list[Batch]) -> list[Batch]:
    """The rows of all batches, one by one, each with the number of its batch.

    A batch is split if all of its tensors have the same first dimension, and if the model computes
    for the first two rows at once what it computes for each of them; otherwise it stays whole. Rows
    without a token, or with padding alone as labels, are left out.
    """
    independent: dict[Any, bool] = {}
    rows: list[Batch] = []
    for batch in batches:
        split = _rows(batch)
        if len(split) > 1:
            signature = signature_of(batch)
            if signature not in independent:
                independent[signature] = are_independent(model, split[0], split[1])
            split = split if independent[signature] else [batch]
        rows += [row for row in split if not _is_empty(row)]
    return rows


def _rows(batch: Batch) -> list[Batch]:
    """The rows of a batch; the batch itself if its tensors differ in their first dimension."""
    extra = batch.item.values() if isinstance(batch.item, dict) else batch.item
    count = len(next(tensors_of(batch))) if shape_of(batch) else 0
    parts = [extra] if isinstance(extra, Tensor) else list(extra or ())
    if not count or any(isinstance(x, Tensor) and x.shape[:1] != (count,) for x in parts):
        return [batch]
    return [
        replace(
            batch,
            args=_row(batch.args, i),
            kwargs=_row(batch.kwargs, i),
            masks=tuple(mask[i : i + 1] for mask in batch.masks if len(mask) == count),
            item=_row(batch.item, i),
        )
        for i in range(count)
    ]


def _row(value: Any, index: int) -> Any:
    """One row of all tensors in a value."""
    if isinstance(value, Tensor):
        return value[index : index + 1]
    if isinstance(value, dict):
        return {key: _row(item, index) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_row(item, index) for item in value)
    return value


def _is_empty(row: Batch) -> bool:
    labels = row.kwargs.get("labels")
    ignored = isinstance(labels, Tensor) and bool((labels == IGNORED).all())
    return ignored or any(not mask.any() for mask in row.masks)
