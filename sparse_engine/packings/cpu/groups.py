"""Groups: the N:M format as the CPU kernels read it; csrc/layouts/groups.h draws the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats import NM, Format
from sparse_engine.formats.bits import pack_numbers, unpack_numbers
from sparse_engine.formats.checks import VALUE_DTYPES, check_buffer, check_shape, check_zero

STEP = 16
# Bytes that kernels read past the last position.
PADDING = 4


@dataclass(frozen=True, eq=False, repr=False)
class Groups(Format):
    """`keep` values in every group of `of` columns, in steps of 16 values; log2(of) bits a value."""

    name: ClassVar[str] = "groups"
    kind: ClassVar[str] = "groups"
    template: ClassVar[str] = "groups:{keep}:{of}"
    param_names: ClassVar[tuple[str, ...]] = ("keep", "of")
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "positions")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = VALUE_DTYPES

    positions: Tensor
    """uint8 [out x 2 log2(of) x steps + 4]."""
    keep: int
    of: int

    @classmethod
    def from_dense(cls, weight: Tensor, keep: int = 2, of: int = 4) -> Self:
        """Pack a weight [out, in] with at most `keep` non-zeros a group."""
        return cls.from_nm(NM.from_dense(weight, keep, of))

    @classmethod
    def from_nm(cls, weight: NM) -> Self:
        """Pack N:M whose `of` is a power of two up to 16, and 2 or 4 times `keep`."""
        buffers = group_buffers(weight, weight.values)
        return cls(shape=weight.shape, keep=weight.keep, of=weight.of, **buffers)

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with `keep` and `of`, in one line, or None."""
        keep, of = params["keep"], params["of"]
        if type(keep) is type(of) is int and of in (2, 4, 8, 16) and of in (2 * keep, 4 * keep):
            return None
        return f"groups: of must be 2, 4, 8 or 16, and 2 or 4 times keep, got {keep}:{of}"

    @property
    def bits(self) -> int:
        """Bits of a position."""
        return (self.of - 1).bit_length()

    @property
    def steps(self) -> int:
        """Steps of a row."""
        return -(-self.shape[1] * self.keep // (STEP * self.of))

    def columns(self) -> Tensor:
        """Column of each value, int64 [out, 16 steps]; padding may lie outside."""
        count = self.steps * STEP
        size = (self.shape[0], 2 * self.bits * self.steps)
        rows = self.positions[: len(self.positions) - PADDING].view(size)
        position = unpack_numbers(rows, self.bits, count).long()
        return torch.arange(count, device=self.device) // self.keep * self.of + position

    def to_dense(self) -> Tensor:
        """The matrix [out, in]."""
        size = (self.shape[0], self.steps * STEP // self.keep * self.of)
        dense = torch.zeros(size, dtype=self.values.dtype, device=self.device)
        starts = torch.arange(size[0], device=self.device)[:, None] * size[1]
        kept = self.values != 0
        dense.view(-1)[(starts + self.columns())[kept]] = self.values[kept]
        return dense[:, : self.shape[1]].contiguous()

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
        check_shape(self.name, self.shape)
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        rows, columns = self.shape[0], self.steps * STEP
        check_buffer("groups values", self.values, self.value_dtypes, (rows, columns))
        size = rows * self.steps * 2 * self.bits + PADDING
        check_buffer("groups positions", self.positions, (torch.uint8,), (size,))
        check_zero("groups positions", self.positions[size - PADDING :].int())
        column, kept = self.columns(), self.values != 0
        check_zero("groups values", self.values[column >= self.shape[1]])
        row = torch.arange(rows)[:, None].expand(column.shape)
        keys = (row * max(self.shape[1], 1) + column)[kept]
        if len(keys.unique()) != len(keys):
            raise InvalidFileError("groups positions: an element is stored twice")


def group_buffers(weight: NM, values: Tensor) -> dict[str, Tensor]:
    """Buffers of Groups for the places of `weight`, with `values` [out, groups x keep] of any dtype."""
    steps = -(-weight.shape[1] * weight.keep // (STEP * weight.of))
    extra = (0, steps * STEP - values.shape[1])
    positions = pad(weight.unpacked_positions().reshape(values.shape), extra)
    packed = pack_numbers(positions, (weight.of - 1).bit_length())
    return {
        "values": pad(values, extra),
        "positions": pad(packed.reshape(-1), (0, PADDING)),
    }
