"""Patterns of the Deep Learning Matrix Collection (Gale et al., SC20): .smtx files.

A file is a pattern without values: "rows, cols, nnz", the rows + 1 offsets, the nnz columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparse_engine.errors import UsageError

# Patterns are compared with dense ones; no layer is larger.
MAX_ELEMENTS = 2**28


@dataclass(frozen=True)
class Smtx:
    """The positions of the non-zeros of a weight [rows, cols]."""

    rows: int
    cols: int
    offsets: np.ndarray
    columns: np.ndarray

    def weight(self) -> Tensor:
        """A float32 weight with random values at these positions."""
        row_of = np.repeat(np.arange(self.rows), np.diff(self.offsets))
        values = torch.randn(len(self.columns), generator=torch.Generator().manual_seed(0))
        dense = torch.zeros(self.rows, self.cols)
        # A random zero would change the pattern.
        dense[torch.from_numpy(row_of), torch.from_numpy(self.columns)] = values.where(
            values != 0, torch.ones(())
        )
        return dense


def parse_smtx(text: str, name: str) -> Smtx:
    """Read the text of a .smtx file; raises UsageError, naming the file, for a damaged one."""
    lines = text.splitlines()
    try:
        rows, cols, nnz = (int(part) for part in lines[0].split(","))
        offsets, columns = (
            np.array((lines[i].split() if i < len(lines) else []), dtype=np.int64) for i in (1, 2)
        )
    except (ValueError, IndexError, OverflowError) as error:
        raise UsageError(f"{name}: not a .smtx file: {str(error)[:80]}") from error
    if not (rows > 0 and cols > 0 and rows * cols <= MAX_ELEMENTS):
        raise UsageError(f"{name}: a matrix of {rows} x {cols} is not a layer")
    if len(offsets) != rows + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise UsageError(f"{name}: row offsets must be {rows + 1} numbers that rise from 0")
    if offsets[-1] != nnz or len(columns) != nnz:
        raise UsageError(f"{name}: the header has {nnz} non-zeros, the rows {len(columns)}")
    if nnz and (columns.min() < 0 or columns.max() >= cols):
        raise UsageError(f"{name}: columns must be in 0..{cols - 1}")
    positions = np.repeat(np.arange(rows), np.diff(offsets)) * cols + columns
    if len(np.unique(positions)) != nnz:
        raise UsageError(f"{name}: a position is listed twice")
    return Smtx(rows, cols, offsets, columns)
