"""Columns: blocks of 16 or 32 rows for matrix instructions; csrc/layouts/columns.h draws the
layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import BSR
from sparse_engine.formats.checks import (
    check_buffer,
    check_count,
    check_pointers,
    check_range,
    check_shape,
    check_zero,
)
from sparse_engine.formats.compressed import row_ids
from sparse_engine.formats.rows import Rows, RowSource, Tiles, joined, running
from sparse_engine.packings.base import Packing
from sparse_engine.packings.cpu.strips import Strips
from sparse_engine.packings.values import Numbers, check_scales, check_symmetric

HEIGHTS = (16, 32)
MAX_INPUTS = 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class Columns(Packing):
    """The columns that any of `height` rows uses, 32 in a step, or 64 of int8.

    Two bytes of index a column, shared by the rows of a band. The last step of a band repeats its
    last column with zeros.
    """

    name: ClassVar[str] = "columns"
    kind: ClassVar[str] = "columns"
    backend: ClassVar[str] = "cpu"
    template: ClassVar[str] = "columns:{height}"
    param_names: ClassVar[tuple[str, ...]] = ("height",)
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "columns", "pointers")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16,)
    step: ClassVar[int] = 32
    """Columns of a step."""

    columns: Tensor
    """uint16 [steps, columns of a step]."""
    pointers: Tensor
    """int32 [bands + 1]: the first step of each band."""

    @classmethod
    def from_format(
        cls, weight: RowSource, dtype: torch.dtype | None = None, height: int = 0
    ) -> Self:
        """As `Packing.from_format`; by default with the height that the weight's blocks fill."""
        if isinstance(weight, BSR) and not height:
            height = 32 if weight.rows % 32 == 0 else 16
        if isinstance(weight, Columns | Strips) and not height:
            height = 32 if weight.height % 32 == 0 else 16
        return super().from_format(weight, dtype, height=height or 16)

    @classmethod
    def _build(cls, source: RowSource, height: int = 16) -> dict[str, Any]:
        problem = cls.params_problem({"height": height})
        if problem:
            raise UsageError(problem)
        if source.shape[1] > MAX_INPUTS:
            raise UsageError(f"columns: at most {MAX_INPUTS} inputs, got {source.shape[1]}")
        values, columns, steps, step = [], [], [], cls.step
        for begin, end in source.ranges(height):
            tiles = source.read_tiles(begin, end, height, 1)
            counts = tiles.pointers.diff()
            padded = -(-counts // step) * step
            # Where each column goes, and the last column of each band where none goes.
            to = torch.arange(len(tiles.columns))
            to += (running(padded)[:-1] - tiles.pointers[:-1]).repeat_interleave(counts)
            filled = counts > 0
            last = tiles.columns[tiles.pointers[1:][filled] - 1]
            all_columns = last.repeat_interleave(padded[filled])
            all_columns[to] = tiles.columns
            elements = tiles.values.new_zeros(len(all_columns), height)
            elements[to] = tiles.values.view(-1, height)
            values.append(elements.view(-1, step, height).transpose(1, 2).contiguous())
            columns.append(all_columns.to(torch.uint16).view(-1, step))
            steps.append(padded // step)
        none = torch.zeros(0, dtype=torch.int32)
        pointers = running(joined(steps, none.long()))
        check_count("columns: steps", int(pointers[-1]))
        return {
            "values": joined(values, none.to(source.dtype).view(0, height, step)),
            "columns": joined(columns, none.to(torch.uint16).view(0, step)),
            "pointers": pointers.int(),
        }

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with the height, in one line, or None."""
        height = params["height"]
        return None if height in HEIGHTS else f"columns: height must be 16 or 32, got {height}"

    @property
    def height(self) -> int:
        """Output rows of a band."""
        return self.values.shape[1]

    @property
    def unit(self) -> int:
        """Rows of a band."""
        return self.height

    def row_costs(self) -> Tensor:
        """Columns of each row's band."""
        counts = self.pointers.diff().long() * self.step
        return counts.repeat_interleave(self.height)[: self.shape[0]]

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        first = begin // self.height
        return self._bands(first, -(-end // self.height)).rows(
            begin - first * self.height, end - first * self.height
        )

    def read_tiles(self, begin: int, end: int, height: int, width: int) -> Tiles:
        """Tiles of rows begin to end - 1; columns of whole bands without a detour."""
        if (height, width) != (self.height, 1):
            return super().read_tiles(begin, end, height, width)
        return self._bands(begin // height, -(-end // height)).occupied()

    def _bands(self, begin: int, end: int) -> Tiles:
        """Bands begin to end - 1, the columns of each in order."""
        pointers = self.pointers[begin : end + 1].long()
        first, last = (int(pointers[0]), int(pointers[-1])) if len(pointers) else (0, 0)
        values = self.values[first:last].transpose(1, 2).reshape(-1, self.height, 1)
        columns = self.columns[first:last].reshape(-1).int()
        return Tiles((pointers - first) * self.step, columns, values)

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        if self.shape[1] > MAX_INPUTS:
            raise InvalidFileError(f"columns: at most {MAX_INPUTS} inputs, got {self.shape[1]}")
        expected = ("steps", "height", self.step)
        check_buffer("columns values", self.values, self.value_dtypes, expected)
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        steps, device = len(self.values), self.values.device
        check_buffer("columns columns", self.columns, (torch.uint16,), (steps, self.step), device)
        bands = -(-self.shape[0] // self.height)
        check_buffer("columns pointers", self.pointers, (torch.int32,), (bands + 1,), device)
        check_pointers("columns pointers", self.pointers, steps)
        columns = self.columns.view(-1).int()
        check_range("columns columns", columns, self.shape[1])
        # A column comes once, but for the zeros at the end of a band.
        same_band = row_ids(self.pointers).repeat_interleave(self.step).diff() == 0
        step = columns.diff()
        if bool((same_band & (step < 0)).any()):
            raise InvalidFileError("columns columns: must rise within a band")
        repeated = torch.zeros(len(columns), dtype=torch.bool)
        repeated[1:] = same_band & (step == 0)
        by_column = self.values.transpose(1, 2).reshape(-1, self.height)
        check_zero("columns values", by_column[repeated])
        tail = self.shape[0] % self.height
        if tail:
            check_zero("columns values", self.values[int(self.pointers[-2]) :, tail:])


@dataclass(frozen=True, eq=False, repr=False)
class Columns8(Columns):
    """Columns of int8."""

    name: ClassVar[str] = "columns8"
    template: ClassVar[str] = "columns8:{height}"
    buffer_names: ClassVar[tuple[str, ...]] = (*Columns.buffer_names, "scales")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8,)
    step: ClassVar[int] = 64

    scales: Tensor
    """float32 [out]."""

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"scales": source.scales}

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        super().validate()
        check_scales("columns", self.scales, self.shape[0], self.device)
        check_symmetric(self.values)


Columns.int8 = Columns8
