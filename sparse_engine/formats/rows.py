"""Rows and tiles: the pieces in which one format or packing is made from another.

Every format gives the non-zeros of consecutive rows as CSR, and tiles of any size. What is built
reads such pieces one after another, so that the dense matrix is never in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of a piece: with the temporary tensors of a conversion about 16 MB. Larger weights are
# cut into so many pieces, since every piece costs the calls of some thirty operators.
CHUNK, PIECES = 1 << 18, 64


@dataclass(frozen=True, eq=False)
class Rows:
    """The non-zeros of some consecutive rows, row after row, columns rising within each.

    Attributes:
        pointers: int64 [rows + 1], from 0.
        columns: int32 [non-zeros].
        values: [non-zeros], of any dtype.
    """

    pointers: Tensor
    columns: Tensor
    values: Tensor

    def row_ids(self) -> Tensor:
        """Row of each non-zero, from 0, int64."""
        rows = torch.arange(len(self.pointers) - 1, device=self.values.device)
        return rows.repeat_interleave(self.pointers.diff(), output_size=len(self.values))

    def keep(self, kept: Tensor) -> Rows:
        """Those elements where `kept`, bool [non-zeros], is set."""
        if bool(kept.all()):
            return self
        before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
        torch.cumsum(kept, 0, out=before[1:])
        return Rows(before[self.pointers], self.columns[kept], self.values[kept])

    def sorted(self) -> Rows:
        """The same with columns that rise; equal ones end up side by side."""
        keys = self.row_ids().mul_(1 << 32).add_(self.columns)
        if not bool((keys[1:] < keys[:-1]).any()):
            return self
        order = keys.argsort(stable=True)
        return Rows(self.pointers, self.columns[order], self.values[order])

    def tiles(self, height: int, width: int, in_features: int) -> Tiles:
        """The tiles of height x width that hold a non-zero."""
        row, column = self.row_ids(), self.columns.long()
        grid = -(-in_features // width)
        rows = -(-(len(self.pointers) - 1) // height)
        place = row % height * width + column % width
        keys = row.div_(height, rounding_mode="floor").mul_(grid)
        keys += column.div_(width, rounding_mode="floor")
        tile, number = _rising(keys) if height == 1 else _distinct(keys, rows * grid)
        values = self.values.new_zeros(len(tile), height, width)
        # Not scatter_, which quietens signalling NaNs in bfloat16.
        values.view(-1).index_copy_(0, number.mul_(height * width).add_(place), self.values)
        counts = (tile // max(grid, 1)).bincount(minlength=rows)
        return Tiles(running(counts), (tile % max(grid, 1)).int(), values)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of some consecutive rows of tiles, as BSR stores them.

    Attributes:
        pointers: int64 [rows of tiles + 1], from 0.
        columns: int32 [tiles], counted in tiles.
        values: [tiles, height, width], zero outside the matrix.
    """

    pointers: Tensor
    columns: Tensor
    values: Tensor

    def rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1, counted from the first row of the tiles."""
        height, width = self.values.shape[1:]
        row = torch.arange(begin, end, device=self.values.device)
        first = self.pointers[row // height]
        counts = self.pointers[row // height + 1] - first
        tile = spans(first, counts)
        inside = (row % height).repeat_interleave(counts, output_size=len(tile))
        values = self.values[tile, inside].view(-1)
        within = torch.arange(width, dtype=torch.int32, device=row.device)
        columns = (self.columns[tile][:, None] * width + within).view(-1)
        return Rows(running(counts * width), columns, values).keep(values != 0)

    def occupied(self) -> Tiles:
        """Those tiles that hold a non-zero."""
        flat = Rows(self.pointers, self.columns, self.values)
        kept = flat.keep((self.values != 0).flatten(1).any(1))
        return Tiles(kept.pointers, kept.columns, kept.values)


class RowSource(ABC):
    """A weight [out, in] that other formats and packings can be built from."""

    shape: tuple[int, int]

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the values that are read."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Of the tensors that are read."""

    @abstractmethod
    def row_costs(self) -> Tensor:
        """Elements that are read for each row, int64 [out]: where chunks are cut."""

    @abstractmethod
    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""

    def read_strip(self, begin: int, end: int, width: int) -> Tensor:
        """Rows begin to end - 1 as a dense matrix [rows, width] with zeros beyond `in`."""
        rows = self.read_rows(begin, end)
        strip = torch.zeros(end - begin, width, dtype=self.dtype, device=self.device)
        # Not scatter_, which quietens signalling NaNs in bfloat16.
        strip.view(-1).index_copy_(0, rows.row_ids().mul_(width).add_(rows.columns), rows.values)
        return strip

    def read_tiles(self, begin: int, end: int, height: int, width: int) -> Tiles:
        """Tiles of rows begin to end - 1 that hold a non-zero; begin is a multiple of height."""
        return self.read_rows(begin, end).tiles(height, width, self.shape[1])

    @property
    def unit(self) -> int:
        """Rows that are best read together."""
        return 1

    def ranges(self, align: int = 1, least: int = 0, limit: int = 0) -> Iterator[tuple[int, int]]:
        """Ranges [begin, end) of rows, in order, of about so many elements.

        Args:
            align: Ranges begin at multiples of so many rows, and hold at least so many.
            least: What a row counts at least.
            limit: Elements of a range; by default `CHUNK`, or more in a large weight.
        """
        align *= -(-self.unit // align)
        ends = (self.row_costs().clamp(min=least) + 1).cumsum(0).cpu()
        limit = limit or max(CHUNK, int(ends[-1]) // PIECES if len(ends) else 0)
        begin, done = 0, 0
        while begin < len(ends):
            end = int(torch.searchsorted(ends, done + limit, right=True))
            end = min(max(begin + align, end // align * align), len(ends))
            yield begin, end
            begin, done = end, int(ends[end - 1])

    def pieces(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Ranges of about `CHUNK` elements that rows begin to end - 1 consist of."""
        cost = int(self.row_costs()[begin:end].sum())
        step = max(self.unit, CHUNK * (end - begin) // max(cost, 1), 1)
        for at in range(begin, end, step):
            yield at, min(at + step, end)

    def row_chunks(self) -> Iterator[tuple[int, Rows]]:
        """All rows in pieces of bounded size: the first row of each, and its non-zeros."""
        for begin, end in self.ranges():
            yield begin, self.read_rows(begin, end)

    def to_dense(self) -> Tensor:
        """The matrix [out, in], on the same device."""
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        for begin, rows in self.row_chunks():
            flat = rows.row_ids().add_(begin).mul_(self.shape[1]).add_(rows.columns)
            dense.view(-1).index_copy_(0, flat, rows.values)
        return dense


def running(counts: Tensor) -> Tensor:
    """int64 [n + 1] pointers from counts [n]."""
    pointers = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=pointers[1:])
    return pointers


def spans(starts: Tensor, lengths: Tensor) -> Tensor:
    """start, start + 1, ... start + length - 1 for each of int64 `starts` and `lengths`."""
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    shift = (starts - ends + lengths).repeat_interleave(lengths, output_size=total)
    return shift.add_(torch.arange(total, device=starts.device))


def joined(pieces: list[Tensor], empty: Tensor) -> Tensor:
    """The pieces one after another, `empty` where there are none; clears the list."""
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else empty
    pieces.clear()
    return whole


def _rising(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The different keys, and for each key which of them it is; keys rise."""
    fresh = torch.ones_like(keys, dtype=torch.bool)
    fresh[1:] = keys[1:] != keys[:-1]
    return keys[fresh], fresh.cumsum(0).sub_(1)


def _distinct(keys: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The different keys, rising, and for each key which of them it is; keys are below `limit`."""
    if len(keys) * 8 < limit:
        return torch.unique(keys, return_inverse=True)
    seen = torch.zeros(limit, dtype=torch.bool, device=keys.device)
    seen[keys] = True
    numbers = seen.cumsum(0, dtype=torch.int32)[keys]
    return seen.nonzero().view(-1), numbers.long().sub_(1)


def positive_zeros(values: Tensor) -> Tensor:
    """A copy of `values` with +0.0 for -0.0; everything else keeps its bits, NaN payloads too."""
    return values.masked_fill(values == 0, 0.0)
