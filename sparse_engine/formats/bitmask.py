"""Bitmask: one bit for every element, and the non-zeros in order.

W[i, k] = the next of values where bit k of mask[i] is set, else 0; rows one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats.base import Format
from sparse_engine.formats.bits import mask_of, masked_rows, pad_bits, popcounts
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_shape,
    first,
)
from sparse_engine.formats.rows import Rows, RowSource, running


@dataclass(frozen=True, eq=False, repr=False)
class Bitmask(Format):
    """Any pattern; 1/8 byte an element, whatever the sparsity: smaller than CSR below 97 % zeros.

    ```
    W = | 5 . . 1 . . . . 9 |     values  5 1 9 2 7                    [nnz]  float32 or bfloat16
        | . 2 7 . . . . . . |     mask    0b00001001 0b00000001        [out, ceil(in / 8)]  uint8
                                          0b00000110 0b00000000        bit k % 8 of byte k / 8
    ```

    Bits beyond `in` are zero.

    >>> Bitmask.from_dense(weight).to_dense()
    """

    name: ClassVar[str] = "bitmask"
    template: ClassVar[str] = "bitmask"
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "mask")

    mask: Tensor

    @classmethod
    def from_format(cls, weight: RowSource) -> Self:
        """Keep every element that is not zero."""
        values, mask, _ = mask_of(weight, -(-weight.shape[1] // 8))
        check_count("bitmask: non-zeros", len(values))
        return cls(weight.shape, values, mask)

    @cached_property
    def starts(self) -> Tensor:
        """Where in `values` each row starts, int64 [out + 1]."""
        return running(popcounts(self.mask))

    def row_costs(self) -> Tensor:
        """Non-zeros of each row, and its share of the mask once that is unpacked."""
        return self.starts.diff() + self.shape[1] // 4

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        starts = self.starts[begin : end + 1]
        return masked_rows(self.mask[begin:end], self.values, starts, self.shape[1])

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix."""
        check_shape(self.name, self.shape)
        out_features, in_features = self.shape
        check_buffer("bitmask values", self.values, VALUE_DTYPES, ("nnz",))
        mask_shape = (out_features, -(-in_features // 8))
        check_buffer("bitmask mask", self.mask, (torch.uint8,), mask_shape, self.values.device)
        row = first(pad_bits(self.mask, in_features))
        if row is not None:
            raise InvalidFileError(
                f"bitmask mask: row {row} has bits set beyond its {in_features} columns"
            )
        bits, count = int(self.starts[-1]), self.values.numel()
        if bits != count:
            raise InvalidFileError(f"bitmask mask: {bits} bits are set for {count} values")
