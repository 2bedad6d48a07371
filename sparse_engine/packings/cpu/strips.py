"""Strips: the weight as the CPU kernels read it; csrc/layouts/strips.h draws the layout.

Entry e of (K-block b, strip s) holds W[s height + r, b block + columns[e]] = values[e, r].
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
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_increasing,
    check_pointers,
    check_range,
    check_shape,
    check_zero,
)
from sparse_engine.formats.compressed import row_ids, to_pointers
from sparse_engine.formats.rows import Rows, RowSource, Tiles, joined, running, spans
from sparse_engine.packings.base import Packing

# Input columns whose slice of a 64-token panel stays near L1: 48 KiB.
K_BLOCK = 192


@dataclass(frozen=True, eq=False, repr=False)
class Strips(Packing):
    """`height` output rows share the columns of a strip: the rows of a BSR block.

    Two bytes of index a column, shared by the rows of the strip, plus four bytes a strip and
    K-block. Rows that a strip has beyond the matrix are zero.
    """

    name: ClassVar[str] = "strips"
    kind: ClassVar[str] = "strips"
    backend: ClassVar[str] = "cpu"
    template: ClassVar[str] = "strips:{height}:{block}"
    param_names: ClassVar[tuple[str, ...]] = ("height", "block")
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "columns", "pointers")

    columns: Tensor
    pointers: Tensor
    block: int

    @classmethod
    def from_format(
        cls,
        weight: RowSource,
        dtype: torch.dtype | None = None,
        height: int = 0,
        block: int = 0,
    ) -> Self:
        """As `Packing.from_format`; by default with the height of the weight's blocks or strips."""
        if isinstance(weight, BSR | Strips):
            height = height or (weight.rows if isinstance(weight, BSR) else weight.height)
        return super().from_format(weight, dtype, height=height or 1, block=block or K_BLOCK)

    @classmethod
    def _build(cls, source: RowSource, height: int = 1, block: int = K_BLOCK) -> dict[str, Any]:
        problem = cls.params_problem({"height": height, "block": block})
        if problem:
            raise UsageError(problem)
        out_features, in_features = source.shape
        strips, blocks = -(-out_features // height), max(1, -(-in_features // block))
        values, columns, segments = [], [], []
        for begin, end in source.ranges(height):
            tiles = source.read_tiles(begin, end, height, 1)
            values.append(tiles.values.view(-1, height))
            columns.append((tiles.columns % block).to(torch.uint16))
            strip = Rows(tiles.pointers, tiles.columns, tiles.values).row_ids()
            segments.append((tiles.columns // block * strips + strip + begin // height).int())
        none = torch.zeros(0, dtype=torch.int32, device=source.device)
        segment = joined(segments, none)
        check_count("strips: columns", len(segment))
        buffers: dict[str, Any] = {
            "values": joined(values, none.to(source.dtype).view(0, height)),
            "columns": joined(columns, none.to(torch.uint16)),
            "pointers": to_pointers(segment.bincount(minlength=blocks * strips)),
            "block": block,
        }
        if blocks > 1:  # from strip by strip to K-block by K-block
            order = segment.argsort(stable=True)
            buffers["values"] = buffers["values"][order]
            buffers["columns"] = buffers["columns"].view(torch.int16)[order].view(torch.uint16)
        return buffers

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with height or block, in one line, or None."""
        limits = {"height": 4096, "block": 65536}
        for key, limit in limits.items():
            if type(params[key]) is not int or not 1 <= params[key] <= limit:
                return f"strips: {key} must lie in 1..{limit}, got {params[key]}"
        return None

    @property
    def height(self) -> int:
        """Output rows of a strip."""
        return self.values.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of (K-blocks, strips); there is one K-block even without inputs."""
        return max(1, -(-self.shape[1] // self.block)), -(-self.shape[0] // self.height)

    def row_costs(self) -> Tensor:
        """Columns of each row's strip."""
        counts = self.pointers.diff().long().view(self.grid).sum(0)
        return counts.repeat_interleave(self.height)[: self.shape[0]]

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        first = begin // self.height
        strips = self._strips(first, -(-end // self.height))
        return strips.rows(begin - first * self.height, end - first * self.height)

    def read_tiles(self, begin: int, end: int, height: int, width: int) -> Tiles:
        """Tiles of rows begin to end - 1; columns of whole strips without a detour."""
        if (height, width) != (self.height, 1):
            return super().read_tiles(begin, end, height, width)
        return self._strips(begin // height, -(-end // height)).occupied()

    def _strips(self, begin: int, end: int) -> Tiles:
        """Strips begin to end - 1, the columns of each in order."""
        blocks, strips = self.grid
        strip = torch.arange(begin, end, device=self.device)[:, None]
        segment = strip + torch.arange(blocks, device=self.device) * strips  # [strips, K-blocks]
        pointers = self.pointers.long()
        counts = pointers[segment + 1] - pointers[segment]
        entry = spans(pointers[segment].view(-1), counts.view(-1))
        k_block = torch.arange(blocks, device=self.device).expand(counts.shape).reshape(-1)
        columns = self.columns.int()[entry]
        columns += (
            (k_block * self.block).int().repeat_interleave(counts.view(-1), output_size=len(entry))
        )
        values = self.values[entry].view(-1, self.height, 1)
        return Tiles(running(counts.sum(1)), columns, values)

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        check_buffer("strips values", self.values, VALUE_DTYPES, ("columns", "height"))
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        blocks, strips = self.grid
        entries, device = self.values.shape[0], self.values.device
        check_buffer("strips columns", self.columns, (torch.uint16,), (entries,), device)
        check_buffer(
            "strips pointers", self.pointers, (torch.int32,), (blocks * strips + 1,), device
        )
        check_pointers("strips pointers", self.pointers, entries)
        columns = self.columns.int()
        segment = row_ids(self.pointers)
        last = self.shape[1] - (blocks - 1) * self.block
        if strips:
            check_range("strips columns", columns, self.block)
            check_range("strips columns", columns[segment >= (blocks - 1) * strips], last)
        check_increasing("strips columns", columns, self.pointers)
        tail = self.shape[0] % self.height
        if tail:
            check_zero("strips values", self.values[segment % strips == strips - 1][:, tail:])
