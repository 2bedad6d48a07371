"""Tiles: a weight for matrix instructions that multiply whole tiles, and for single tokens.

csrc/layouts/tiles.h draws the layout: bands of 32 rows, each with tiles of 16 rows and 32 columns,
or 64 of int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.bits import pack_bits, popcounts, unpack_bits
from sparse_engine.formats.checks import (
    check_buffer,
    check_count,
    check_increasing,
    check_pointers,
    check_range,
    check_shape,
    check_zero,
)
from sparse_engine.formats.dense import Dense
from sparse_engine.formats.rows import CHUNK, PIECES, Rows, RowSource, joined, running
from sparse_engine.packings.base import Packing
from sparse_engine.packings.values import Numbers, check_scales, check_symmetric

ROWS, BAND, LINES = 16, 32, 16
# Kernels load whole registers from the last value on.
PADDING = 64
MAX_INPUTS = 1 << 16
"""Columns of tiles are uint16, and sums of int8 stay exact."""


@dataclass(frozen=True, eq=False, repr=False)
class PackedTiles(Packing):
    """Tiles with a non-zero: a bit an element and the non-zeros, or all elements.

    All tiles are stored whole where masks would take more bytes than the zeros: full blocks of
    16x32, and matrices with few zeros.
    """

    name: ClassVar[str] = "tiles"
    kind: ClassVar[str] = "tiles"
    backend: ClassVar[str] = "cpu"
    template: ClassVar[str] = "tiles"
    buffer_names: ClassVar[tuple[str, ...]] = (
        "values",
        "masks",
        "columns",
        "halves",
        "entries",
        "tiles",
        "starts",
    )
    together: ClassVar[int] = 2
    """Columns that are multiplied at once."""
    mask_dtype: ClassVar[torch.dtype] = torch.uint32

    masks: Tensor
    """[16 tiles], or [0] where tiles are whole: a bit for each of 16 rows x `together` columns."""
    columns: Tensor
    """uint16 [entries]: the column of an entry, counted in tiles."""
    halves: Tensor
    """uint8 [entries]: bit 0 for rows 0 to 15 of the band, bit 1 for the others."""
    entries: Tensor
    """int32 [bands + 1]: the first entry of each band."""
    tiles: Tensor
    """int32 [bands + 1]: the first tile of each band."""
    starts: Tensor
    """int32 [bands + 1]: the first value of each band."""

    @classmethod
    def _build(cls, source: RowSource) -> dict[str, Any]:
        if source.shape[1] > MAX_INPUTS:
            raise UsageError(f"tiles: at most {MAX_INPUTS} inputs, got {source.shape[1]}")
        parts = [_Part.read(cls, source, begin, end) for begin, end in cls._ranges(source)]
        none = torch.zeros(0, dtype=torch.uint8, device=source.device)
        counts = joined([part.counts for part in parts], none.long())
        halves = joined([part.halves for part in parts], none)
        entries = joined([part.entries for part in parts], none.long())
        check_count("tiles: tiles", len(counts))
        full, width = len(counts) * cls.size(), source.dtype.itemsize
        whole = full * width <= int(counts.sum()) * width + full // 8
        tiles = running(entries_to_tiles(halves, running(entries)))
        starts = running(torch.full_like(counts, cls.size()) if whole else counts)[tiles]
        check_count("tiles: values", int(starts[-1]) + PADDING)
        columns = joined([part.columns for part in parts], none.to(torch.uint16))
        values = none.new_zeros(int(starts[-1]) + PADDING, dtype=source.dtype)
        masks = none.new_empty(0 if whole else full // 8)
        parts.reverse()
        at = byte = 0
        while parts:  # a part is freed once it was copied
            part = parts.pop()
            some = part.elements(cls.size()) if whole else part.values
            values[at : at + len(some)] = some
            at += len(some)
            if not whole:
                masks[byte : byte + part.masks.numel()] = part.masks.view(-1)
                byte += part.masks.numel()
        return {
            "values": values,
            "masks": masks.view(cls.mask_dtype),
            "columns": columns,
            "halves": halves,
            "entries": running(entries).int(),
            "tiles": tiles.int(),
            "starts": starts.int(),
        }

    @classmethod
    def size(cls) -> int:
        """Elements of a tile."""
        return ROWS * LINES * cls.together

    @classmethod
    def depth(cls) -> int:
        """Columns of a tile."""
        return LINES * cls.together

    @classmethod
    def _ranges(cls, source: RowSource) -> list[tuple[int, int]]:
        # A quarter of the usual: the pieces are dense.
        elements = source.shape[0] * source.shape[1]
        limit = max(CHUNK, elements // PIECES) // 4
        return list(source.ranges(BAND, least=source.shape[1], limit=limit))

    @property
    def unit(self) -> int:
        """Rows of a band."""
        return BAND

    def row_costs(self) -> Tensor:
        """Elements of the tiles of each row's band, by its rows."""
        counts = self.tiles.diff().long() * self.size() // BAND
        return counts.repeat_interleave(BAND)[: self.shape[0]]

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        band = begin // BAND
        strip = self._strip(band, -(-end // BAND))[begin - band * BAND : end - band * BAND]
        return Dense((end - begin, self.shape[1]), strip[:, : self.shape[1]]).read_rows(
            0, end - begin
        )

    def _strip(self, begin: int, end: int) -> Tensor:
        """Bands begin to end - 1 as a dense matrix of whole tiles."""
        across, size = -(-self.shape[1] // self.depth()), self.size()
        first, last = int(self.tiles[begin]), int(self.tiles[end])
        low, high = int(self.starts[begin]), int(self.starts[end])
        tiles = torch.zeros((last - first) * size, dtype=self.dtype)
        if len(self.masks):
            tiles[self._bits(first, last).view(-1)] = self.values[low:high]
        else:
            tiles.copy_(self.values[low:high])
        lines = tiles.view(-1, LINES, ROWS, self.together).transpose(1, 2)
        grid = torch.zeros((end - begin) * across * 2, ROWS, self.depth(), dtype=self.dtype)
        grid[self._places(begin, end)] = lines.reshape(-1, ROWS, self.depth())
        rows = grid.view(end - begin, across, 2, ROWS, self.depth()).permute(0, 2, 3, 1, 4)
        return rows.reshape((end - begin) * BAND, across * self.depth())

    def _places(self, begin: int, end: int) -> Tensor:
        """Where each tile of bands begin to end - 1 is in [bands, columns of tiles, 2]."""
        first, last = int(self.entries[begin]), int(self.entries[end])
        across = -(-self.shape[1] // self.depth())
        band = torch.arange(end - begin).repeat_interleave(self.entries[begin : end + 1].diff())
        entry = 2 * (band * across + self.columns[first:last].long())
        halves = self.halves[first:last]
        there = torch.stack([halves & 1, halves >> 1 & 1], 1).bool()
        return (entry[:, None] + torch.arange(2))[there]

    def _bits(self, first: int, last: int) -> Tensor:
        """Masks of tiles, bool [tiles, elements of a tile]."""
        masks = self.masks[first * LINES : last * LINES].view(torch.uint8)
        return unpack_bits(masks.view(last - first, -1), self.size())

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        out_features, in_features = self.shape
        if in_features > MAX_INPUTS:
            raise InvalidFileError(f"tiles: at most {MAX_INPUTS} inputs, got {in_features}")
        check_buffer("tiles values", self.values, self.value_dtypes, ("values",))
        count, device = len(self.columns), self.values.device
        check_buffer("tiles columns", self.columns, (torch.uint16,), ("entries",), device)
        check_buffer("tiles halves", self.halves, (torch.uint8,), (count,), device)
        bands = (-(-out_features // BAND) + 1,)
        for key in ("entries", "tiles", "starts"):
            check_buffer(f"tiles {key}", getattr(self, key), (torch.int32,), bands, device)
        check_pointers("tiles entries", self.entries, count)
        check_range("tiles columns", self.columns.int(), -(-in_features // self.depth()))
        check_increasing("tiles columns", self.columns.int(), self.entries)
        if bool(((self.halves < 1) | (self.halves > 3)).any()):
            raise InvalidFileError("tiles halves: expected 1, 2 or 3")
        tiles = running(entries_to_tiles(self.halves, self.entries.long()))
        if not torch.equal(tiles, self.tiles.long()):
            raise InvalidFileError("tiles tiles: do not count the tiles of the bands")
        masked = len(self.masks) > 0
        size = (LINES * int(tiles[-1]) if masked else 0,)
        check_buffer("tiles masks", self.masks, (self.mask_dtype,), size, device)
        counts = torch.full((int(tiles[-1]),), self.size())
        if masked:
            counts = popcounts(self.masks.view(torch.uint8).view(int(tiles[-1]), -1))
        if not torch.equal(running(counts)[tiles], self.starts.long()):
            raise InvalidFileError("tiles starts: do not count the values of the bands")
        stored = int(self.starts[-1])
        if len(self.values) != stored + PADDING:
            raise InvalidFileError(f"tiles values: expected {stored} and {PADDING} zeros")
        check_zero("tiles values", self.values[stored:])
        for begin, end in self.ranges(BAND):
            strip = self._strip(begin // BAND, -(-end // BAND))
            check_zero("tiles values", strip[:, in_features:])
            check_zero("tiles values", strip[max(0, out_features - begin) :])


@dataclass(frozen=True, eq=False, repr=False)
class PackedTiles8(PackedTiles):
    """Tiles of int8."""

    name: ClassVar[str] = "tiles8"
    template: ClassVar[str] = "tiles8"
    buffer_names: ClassVar[tuple[str, ...]] = (*PackedTiles.buffer_names, "scales", "corrections")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8,)
    together: ClassVar[int] = 4
    mask_dtype: ClassVar[torch.dtype] = torch.uint64

    scales: Tensor
    """float32 [out]."""
    corrections: Tensor
    """int32 [32 bands]: -128 x the sum of a row's values; single tokens come as x + 128."""

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        corrections = torch.zeros((len(buffers["tiles"]) - 1) * BAND, dtype=torch.int32)
        corrections[: source.shape[0]] = -128 * source.sums
        return {"scales": source.scales, "corrections": corrections}

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        super().validate()
        check_scales("tiles", self.scales, self.shape[0], self.device)
        check_symmetric(self.values)
        size = ((len(self.tiles) - 1) * BAND,)
        check_buffer("tiles corrections", self.corrections, (torch.int32,), size, self.device)
        sums = torch.zeros_like(self.corrections)
        for begin, rows in self.row_chunks():
            sums.index_add_(0, rows.row_ids() + begin, rows.values.int())
        if not torch.equal(self.corrections, -128 * sums):
            raise InvalidFileError("tiles corrections: are not -128 x the sums of the rows")


PackedTiles.int8 = PackedTiles8


def entries_to_tiles(halves: Tensor, entries: Tensor) -> Tensor:
    """Tiles of each band, int64 [bands], from `halves` [entries] and pointers [bands + 1]."""
    tiles = running((halves & 1).long() + (halves >> 1 & 1).long())
    return tiles[entries].diff()


@dataclass(frozen=True)
class _Part:
    """Some bands in the order of the layout.

    Attributes:
        masks: uint8 [tiles, elements of a tile / 8].
        counts: int64 [tiles], non-zeros of each tile.
        values: the non-zeros.
        columns: uint16 [entries].
        halves: uint8 [entries].
        entries: int64 [bands], entries of each band.
    """

    masks: Tensor
    counts: Tensor
    values: Tensor
    columns: Tensor
    halves: Tensor
    entries: Tensor

    def elements(self, size: int) -> Tensor:
        """All elements of the tiles, [tiles x size]."""
        elements = self.values.new_zeros(len(self.masks) * size)
        elements[unpack_bits(self.masks, size).view(-1)] = self.values
        return elements

    @classmethod
    def read(cls, kind: type[PackedTiles], source: RowSource, begin: int, end: int) -> _Part:
        """Rows begin to end - 1 of a weight; begin is a multiple of 32."""
        bands, depth, together = -(-(end - begin) // BAND), kind.depth(), kind.together
        across = -(-source.shape[1] // depth)
        strip = source.read_strip(begin, end, across * depth)
        whole = strip.new_zeros(bands * BAND, across * depth)
        whole[: end - begin] = strip
        grid = whole.view(bands, 2, ROWS, across, LINES, together)
        tiles = grid.permute(0, 3, 1, 4, 2, 5).reshape(bands, across, 2, kind.size())
        bits = tiles != 0
        there = bits.any(3)
        halves = there[:, :, 0].to(torch.uint8) + 2 * there[:, :, 1].to(torch.uint8)
        stored = halves > 0
        bits = bits[there]
        columns = torch.arange(across).expand(bands, across)[stored]
        return cls(
            pack_bits(bits),
            bits.sum(1),
            tiles[there][bits],
            columns.to(torch.uint16),
            halves[stored],
            stored.sum(1),
        )
