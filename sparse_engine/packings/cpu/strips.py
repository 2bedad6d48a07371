"""Strips: the weight as the CPU kernels read it; csrc/layouts/strips.h draws the layout.

Entry e of (K-block b, strip s) holds W[s height + r, b block + columns[e]] = values[e, r].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.base import Format, positive_zeros
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_increasing,
    check_pointers,
    check_range,
    check_shape,
    check_weight,
    check_zero,
)
from sparse_engine.formats.compressed import row_ids, to_pointers

# Input columns whose slice of a 64-token panel stays near L1: 48 KiB.
K_BLOCK = 192


@dataclass(frozen=True, eq=False, repr=False)
class Strips(Format):
    """`height` output rows share the columns of a strip: the rows of a BSR block.

    Two bytes of index a column, shared by the rows of the strip, plus four bytes a strip and
    K-block. Rows that a strip has beyond the matrix are zero.
    """

    name: ClassVar[str] = "strips"
    kind: ClassVar[str] = "strips"
    template: ClassVar[str] = "strips:{height}:{block}"
    param_names: ClassVar[tuple[str, ...]] = ("height", "block")
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "columns", "pointers")

    columns: Tensor
    pointers: Tensor
    block: int

    @classmethod
    def from_dense(cls, weight: Tensor, height: int = 1, block: int | None = None) -> Self:
        """Pack a weight [out, in], float32 or bfloat16; a column with a single non-zero is kept whole."""
        weight = check_weight(weight)
        block = block or K_BLOCK
        problem = cls.params_problem({"height": height, "block": block})
        if problem:
            raise UsageError(problem)
        out_features, in_features = weight.shape
        extra = -out_features % height
        padded = torch.nn.functional.pad(weight, (0, 0, 0, extra)) if extra else weight
        tiles = padded.view(padded.shape[0] // height, height, in_features)  # [strips, height, in]
        occupied = (tiles != 0).any(1)  # [strips, in]
        check_count("strips: columns", int(occupied.sum()))
        values, columns, counts = [], [], []
        for start in range(0, max(in_features, 1), block):
            used = occupied[:, start : start + block]
            values.append(tiles[:, :, start : start + block].transpose(1, 2)[used])
            columns.append(used.nonzero()[:, 1])
            counts.append(used.sum(1))
        empty = torch.zeros(0, dtype=torch.int64)
        return cls(
            shape=(out_features, in_features),
            values=positive_zeros(torch.cat([weight.new_zeros(0, height), *values])),
            columns=torch.cat([empty, *columns]).to(torch.uint16),
            pointers=to_pointers(torch.cat([empty, *counts])),
            block=block,
        )

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

    def to_dense(self) -> Tensor:
        """The matrix [out, in] without padding."""
        strips = self.grid[1]
        segment = row_ids(self.pointers)  # (K-block, strip) of each entry
        column = segment // max(strips, 1) * self.block + self.columns.long()
        tiles = self.values.new_zeros(strips, self.shape[1], self.height)
        tiles[segment % max(strips, 1), column] = self.values
        dense = tiles.transpose(1, 2).reshape(strips * self.height, self.shape[1])
        return dense[: self.shape[0]].contiguous()

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
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
