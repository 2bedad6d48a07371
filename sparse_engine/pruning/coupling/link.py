"""A link: one layer reads the units that another one computes, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Link:
    """Two adjacent layers, with nothing between them that mixes units.

    A unit may have several rows in the producer, as the gates of an LSTM, and several columns in
    the reader, as the positions of a kernel.

    Attributes:
        producer: dotted name of the layer that computes the units.
        reader: dotted name of the layer that reads them.
        rows: int64 [out of the producer], the unit that each row belongs to.
        columns: int64 [in of the reader], the unit that each column reads; -1 where it reads
            something else.
    """

    producer: str
    reader: str
    rows: Tensor
    columns: Tensor


def in_order(units: int) -> Tensor:
    """Rows or columns that are the units themselves."""
    return torch.arange(units)


def in_turns(units: int, times: int) -> Tensor:
    """Rows of `times` parts one after another, each with all units: 0, 1, 0, 1 for two units."""
    return torch.arange(units).repeat(times)


def side_by_side(units: int, times: int) -> Tensor:
    """Columns of a unit next to each other: 0, 0, 1, 1 for two units."""
    return torch.arange(units).repeat_interleave(times)
