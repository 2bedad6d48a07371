"""Bits: the bitmask format as the CPU kernels read it; csrc/layouts/bits.h draws the layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats.base import Format
from sparse_engine.formats.bits import pack_bits, pad_bits, popcount, unpack_bits
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_pointers,
    check_shape,
    check_weight,
    check_zero,
)
from sparse_engine.formats.compressed import to_pointers

# Kernels load whole registers from the last value on.
PADDING = 64
COLUMNS = 64


@dataclass(frozen=True, eq=False, repr=False)
class Bits(Format):
    """A bit an element, rows padded to 64 columns; the non-zeros in order; where each row begins."""

    name: ClassVar[str] = "bits"
    kind: ClassVar[str] = "bits"
    template: ClassVar[str] = "bits"
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "mask", "offsets")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = VALUE_DTYPES

    mask: Tensor
    """uint8 [out, 8 ceil(in / 64)]."""
    offsets: Tensor
    """int32 [out + 1]."""

    @classmethod
    def from_dense(cls, weight: Tensor) -> Self:
        """Pack a weight [out, in], float32 or bfloat16."""
        weight = check_weight(weight)
        return cls(shape=(weight.shape[0], weight.shape[1]), **bit_buffers(weight))

    def to_dense(self) -> Tensor:
        """The matrix [out, in]."""
        dense = torch.zeros(self.shape, dtype=self.values.dtype, device=self.device)
        kept = unpack_bits(self.mask, self.shape[1])
        return dense.masked_scatter_(kept, self.values[: len(self.values) - PADDING])

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
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
        if popcount(self.mask) != stored:
            raise InvalidFileError(f"bits mask: {popcount(self.mask)} bits for {stored} values")
        counts = unpack_bits(self.mask, in_features).sum(1)
        if not torch.equal(to_pointers(counts), self.offsets):
            raise InvalidFileError("bits offsets: do not count the bits of the rows")


def bit_buffers(weight: Tensor) -> dict[str, Tensor]:
    """Buffers of Bits for a weight of any dtype."""
    kept = weight != 0
    check_count("bits: non-zeros", int(kept.sum()))
    return {
        "values": pad(weight[kept], (0, PADDING)),
        "mask": pack_bits(pad(kept, (0, -weight.shape[1] % COLUMNS))),
        "offsets": to_pointers(kept.sum(1)),
    }
