"""Bits: the bitmask format as the CPU kernels read it; csrc/layouts/bits.h draws the layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats import Bitmask, Format
from sparse_engine.formats.bits import mask_of, masked_rows, pad_bits, popcounts
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_pointers,
    check_shape,
    check_zero,
)
from sparse_engine.formats.rows import Rows, RowSource, running
from sparse_engine.packings.base import Packing

# Kernels load whole registers from the last value on.
PADDING = 64
COLUMNS = 64


@dataclass(frozen=True, eq=False, repr=False)
class Bits(Packing):
    """One bit an element in rows of whole 64 columns, the non-zeros, and where each row begins."""

    name: ClassVar[str] = "bits"
    kind: ClassVar[str] = "bits"
    backend: ClassVar[str] = "cpu"
    template: ClassVar[str] = "bits"
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "mask", "offsets")

    mask: Tensor
    """uint8 [out, 8 ceil(in / 64)]."""
    offsets: Tensor
    """int32 [out + 1]."""

    @classmethod
    def _build(cls, source: RowSource) -> dict[str, Any]:
        stride = -(-source.shape[1] // COLUMNS) * COLUMNS // 8
        if isinstance(source, Bitmask):
            values, starts = source.values, source.starts
            mask = pad(source.mask, (0, stride - source.mask.shape[1]))
        else:
            values, mask, counts = mask_of(source, stride)
            starts = running(counts)
        check_count("bits: non-zeros", len(values))
        return {"values": pad(values, (0, PADDING)), "mask": mask, "offsets": starts.int()}

    def to_format(self, kind: type[Format], **params: int) -> Format:
        """As `Packing.to_format`; as a bitmask, float values are shared."""
        if kind is not Bitmask or self.dtype not in VALUE_DTYPES:
            return super().to_format(kind, **params)
        stride = -(-self.shape[1] // 8)
        values = self.values[: len(self.values) - PADDING]
        return Bitmask(self.shape, values, self.mask[:, :stride].contiguous())

    def row_costs(self) -> Tensor:
        """Non-zeros of each row, and its share of the mask once that is unpacked."""
        return self.offsets.diff().long() + self.shape[1] // 4

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        offsets = self.offsets[begin : end + 1]
        return masked_rows(self.mask[begin:end], self.values, offsets, self.shape[1])

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        out_features, in_features = self.shape
        check_buffer("bits values", self.values, self.value_dtypes, ("values",))
        size = (out_features, -(-in_features // COLUMNS) * COLUMNS // 8)
        check_buffer("bits mask", self.mask, (torch.uint8,), size, self.values.device)
        count = (out_features + 1,)
        check_buffer("bits offsets", self.offsets, (torch.int32,), count, self.values.device)
        stored = len(self.values) - PADDING
        if stored < 0:
            raise InvalidFileError(f"bits values: expected {PADDING} zeros at the end")
        check_zero("bits values", self.values[stored:])
        check_pointers("bits offsets", self.offsets, stored)
        used = -(-in_features // 8)
        if bool(pad_bits(self.mask[:, :used], in_features).any()) or bool(
            self.mask[:, used:].any()
        ):
            raise InvalidFileError(f"bits mask: bits are set beyond {in_features} columns")
        counts = popcounts(self.mask)
        if int(counts.sum()) != stored:
            raise InvalidFileError(f"bits mask: {int(counts.sum())} bits for {stored} values")
        if not torch.equal(running(counts), self.offsets.long()):
            raise InvalidFileError("bits offsets: do not count the bits of the rows")
