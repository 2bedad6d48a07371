"""PackedNM: N:M as the GPU kernel reads it: positions of 1, 2 or 4 bits, rows padded to whole words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import NM, Format
from sparse_engine.formats.bits import pack_numbers, unpack_numbers
from sparse_engine.formats.checks import check_buffer, check_shape, check_zero
from sparse_engine.packings.cuda.values import GPU_DTYPES, as_numbers, check_scales, scaled

# Bits of a position by the size of a group; and values that a row is padded to a multiple of.
BITS = {2: 1, 4: 2, 8: 4, 16: 4}
STEP = 16


@dataclass(frozen=True, eq=False, repr=False)
class PackedNM(Format):
    """`keep` values in every group of `of` columns, rows in multiples of 16 values."""

    name: ClassVar[str] = "packed_nm"
    kind: ClassVar[str] = "packed_nm"
    template: ClassVar[str] = "packed_nm:{keep}:{of}"
    param_names: ClassVar[tuple[str, ...]] = ("keep", "of")
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "positions", "scales")

    positions: Tensor
    """uint8 [out, values of a row x bits / 8], the first of a byte in the lowest bits."""
    scales: Tensor
    """float32 [out] beside int8 values, else [0]."""
    keep: int
    of: int

    @classmethod
    def from_dense(
        cls, weight: Tensor, keep: int, of: int, dtype: torch.dtype | None = None
    ) -> Self:
        """Pack a weight [out, in] with at most `keep` non-zeros a group, as values of `dtype`."""
        problem = cls.params_problem({"keep": keep, "of": of})
        if problem:
            raise UsageError(problem)
        dtype = dtype or weight.dtype
        numbers, scales = as_numbers(weight, dtype)
        matrix = NM.from_dense(numbers, keep, of)
        count = matrix.values.shape[1]
        extra = (0, -count % STEP)
        positions = matrix.unpacked_positions().reshape(-1, count) if count else matrix.positions
        return cls(
            shape=matrix.shape,
            values=pad(matrix.values.to(dtype), extra),
            positions=pack_numbers(pad(positions, extra), BITS[of]),
            scales=scales,
            keep=keep,
            of=of,
        )

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """Why no GPU kernel has such groups, or None."""
        keep, of = params["keep"], params["of"]
        if of in BITS and 1 <= keep <= of and keep & (keep - 1) == 0:
            return None
        return f"{keep}:{of}: GPU kernels have powers of two in groups of 2, 4, 8 or 16"

    def _columns(self) -> Tensor:
        """Column of each value, int64 [out, n]; padding may lie outside."""
        count = self.values.shape[1]
        places = unpack_numbers(self.positions, BITS[self.of], count).long()
        return torch.arange(count, device=self.device) // self.keep * self.of + places

    def to_dense(self) -> Tensor:
        """The matrix [out, in]."""
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        full = self.values != 0
        row = torch.arange(self.shape[0], device=self.device)[:, None].expand(full.shape)
        dense[row[full], self._columns()[full]] = self.values[full]
        return scaled(dense, self.scales)

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
        check_shape(self.name, self.shape)
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        rows, device = self.shape[0], self.values.device
        count = -(-self.shape[1] // self.of) * self.keep
        count += -count % STEP
        check_buffer("packed_nm values", self.values, GPU_DTYPES, (rows, count))
        size = (rows, count * BITS[self.of] // 8)
        check_buffer("packed_nm positions", self.positions, (torch.uint8,), size, device)
        check_scales("packed_nm", self.values, self.scales, rows)
        columns, full = self._columns(), self.values != 0
        places = unpack_numbers(self.positions, BITS[self.of], count)
        if bool((places >= self.of).any()):
            raise InvalidFileError(f"packed_nm positions: must lie in 0..{self.of - 1}")
        check_zero("packed_nm values", self.values[columns >= self.shape[1]])
        row = torch.arange(rows, device=device)[:, None].expand(full.shape)
        keys = (row * max(self.shape[1], 1) + columns)[full]
        if len(keys.unique()) != len(keys):
            raise InvalidFileError("packed_nm positions: an element is stored twice")
