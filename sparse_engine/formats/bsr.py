"""BSR: compressed sparse rows of small dense blocks; one column index a block.

W[rows i + r, cols indices[j] + c] = values[j, r, c] for pointers[i] <= j < pointers[i + 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_shape,
    check_weight,
    check_zero,
)
from sparse_engine.formats.compressed import Compressed
from sparse_engine.formats.dense import occupied_tiles, tiled
from sparse_engine.formats.rows import Rows, RowSource, Tiles

# Bounds what a file can make to_dense allocate beyond the matrix itself.
MAX_SIDE = 4096


@dataclass(frozen=True, eq=False, repr=False)
class BSR(Compressed):
    """Blocks of rows x cols elements; a block with a single non-zero is stored whole.

    ```
    BSR.from_dense(W, rows=2, cols=1)

    W = | 5 . . 1 |     values   [5]  [1]  [2]  [7]     [blocks, rows, cols]  float32 or bfloat16
        | 6 . . 0 |              [6]  [0]  [4]  [8]
        | . 2 7 . |     indices   0    3    1    2      [blocks]              int32, block columns
        | . 4 8 . |     pointers  0 2 4                 [block rows + 1]      int32
    ```

    Rows count outputs. A shape that is no multiple of the block is padded with zeros inside;
    `to_dense` removes the padding.

    >>> BSR.from_dense(weight, rows=4, cols=1).nbytes
    """

    name: ClassVar[str] = "bsr"
    template: ClassVar[str] = "bsr:{rows}x{cols}"
    param_names: ClassVar[tuple[str, ...]] = ("rows", "cols")
    torch_layout: ClassVar[torch.layout] = torch.sparse_bsr

    @classmethod
    def from_format(cls, weight: RowSource, rows: int, cols: int) -> Self:
        """Keep every block of rows x cols that holds a non-zero."""
        problem = cls.params_problem({"rows": rows, "cols": cols})
        if problem:
            raise UsageError(problem)
        pieces = (weight.read_tiles(*span, rows, cols) for span in weight.ranges(rows))
        empty = torch.zeros(0, rows, cols, dtype=weight.dtype, device=weight.device)
        return cls._assemble(weight.shape, pieces, empty)

    def row_costs(self) -> Tensor:
        """Elements of each row that lie in blocks."""
        counts = self.pointers.diff().long() * self.cols
        return counts.repeat_interleave(self.rows)[: self.shape[0]]

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        first = begin // self.rows * self.rows
        return self._blocks(begin, end).rows(begin - first, end - first)

    def read_tiles(self, begin: int, end: int, height: int, width: int) -> Tiles:
        """Tiles of rows begin to end - 1; blocks or their columns are read as they are."""
        if height != self.rows or width not in (1, self.cols):
            return super().read_tiles(begin, end, height, width)
        blocks = self._blocks(begin, end)
        if width != self.cols:
            within = torch.arange(self.cols, dtype=torch.int32, device=self.device)
            columns = (blocks.columns[:, None] * self.cols + within).view(-1)
            values = blocks.values.transpose(1, 2).reshape(-1, self.rows, 1)
            blocks = Tiles(blocks.pointers * self.cols, columns, values)
        return blocks.occupied()

    def _blocks(self, begin: int, end: int) -> Tiles:
        """The rows of blocks that rows begin to end - 1 lie in."""
        pointers = self.pointers[begin // self.rows : -(-end // self.rows) + 1].long()
        first, last = int(pointers[0]), int(pointers[-1])
        return Tiles(pointers - first, self.indices[first:last], self.values[first:last])

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with the block's sides, in one line, or None."""
        sides = (params["rows"], params["cols"])
        if all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
            return None
        return f"bsr: block sides must lie in 1..{MAX_SIDE}, got {sides[0]}x{sides[1]}"

    @property
    def rows(self) -> int:
        """Output features in a block."""
        return self.values.shape[1]

    @property
    def cols(self) -> int:
        """Input features in a block."""
        return self.values.shape[2]

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.rows, self.cols

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix."""
        check_shape(self.name, self.shape)
        check_buffer("bsr values", self.values, VALUE_DTYPES, ("blocks", "rows", "cols"))
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        self._validate_entries()
        self._validate_padding()

    def _validate_padding(self) -> None:
        out_tail, in_tail = self.shape[0] % self.rows, self.shape[1] % self.cols
        if in_tail:
            last = self.indices == self.grid[1] - 1
            check_zero("bsr values", self.values[last][:, :, in_tail:])
        if out_tail:
            check_zero("bsr values", self.values[int(self.pointers[-2]) :, out_tail:])


def block_fill(weight: Tensor, rows: int, cols: int) -> float:
    """Fraction of non-zeros among the elements of the rows x cols blocks that hold at least one.

    1.0 means that the pattern is made of such blocks, or that the weight [out, in] is all zero.
    Padding is not counted. Raises UsageError.
    """
    weight = check_weight(weight)
    problem = BSR.params_problem({"rows": rows, "cols": cols})
    if problem:
        raise UsageError(problem)
    occupied = occupied_tiles(tiled(weight, rows, cols))
    sides = ((weight.shape[0], rows), (weight.shape[1], cols))
    heights, widths = (block_sides(size, side, weight.device) for size, side in sides)
    covered = float(heights @ occupied.double() @ widths)
    return float(weight.count_nonzero()) / covered if covered else 1.0


def block_sides(size: int, side: int, device: torch.device) -> Tensor:
    """How many of the `side` elements of each block lie inside the matrix, float64 [blocks]."""
    starts = torch.arange(0, size, side, dtype=torch.float64, device=device)
    return (size - starts).clamp(max=side)
