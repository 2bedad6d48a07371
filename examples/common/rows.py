"""Encoded texts as batches, and what a model makes of them.

A row is a mapping from the names of the inputs of a model to lists of ids, and from "labels" to a
label, or to one for each word.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # the label of padding

Row = Mapping[str, Any]
Batch = dict[str, Tensor]


def collate(rows: Sequence[Row]) -> Batch:
    """Tensors of rows: ids are padded with 0 on the right, labels with IGNORED."""
    batch = {}
    for name in rows[0]:
        values = [torch.tensor(row[name]) for row in rows]
        if values[0].ndim == 0:
            batch[name] = torch.stack(values)
        else:
            padding = IGNORED if name == "labels" else 0
            batch[name] = nn.utils.rnn.pad_sequence(values, True, padding)
    return batch


def length(row: Row) -> int:
    """The length of the first input of a row."""
    return len(next(iter(row.values())))


def in_order(rows: Sequence[Row], size: int = 64) -> Iterator[Batch]:
    """Every row once, in batches of like length."""
    ordered = sorted(rows, key=length)
    for first in range(0, len(ordered), size):
        yield collate(ordered[first : first + size])


def endless(rows: Sequence[Row], size: int, seed: int) -> Iterator[Batch]:
    """Batches of rows of like length, in another order in every pass."""
    draw = random.Random(seed)
    while True:
        order = sorted(draw.sample(rows, len(rows)), key=length)
        starts = range(0, len(order), size)
        for first in draw.sample(starts, len(starts)):
            yield collate(order[first : first + size])


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of a model of torch or of transformers."""
    output = model(**{name: x for name, x in batch.items() if name != "labels"})
    return output if isinstance(output, Tensor) else output.logits


def loss_of(model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the labels that are none of padding."""
    logits, labels = logits_of(model, batch).flatten(0, -2), batch["labels"].flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)


@torch.inference_mode()
def accuracy(model: nn.Module, rows: Sequence[Row]) -> float:
    """Per cent of the texts whose label has the largest logit."""
    right = sum(
        int((logits_of(model, batch).argmax(-1) == batch["labels"]).sum())
        for batch in in_order(rows)
    )
    return 100 * right / len(rows)
