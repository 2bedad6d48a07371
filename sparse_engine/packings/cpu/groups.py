"""Groups: the N:M format as the CPU kernels read it; csrc/layouts/groups.h draws the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import NM, Format
from sparse_engine.formats.base import check_elements
from sparse_engine.formats.bits import unpack_numbers
from sparse_engine.formats.checks import VALUE_DTYPES, check_buffer, check_shape, check_zero
from sparse_engine.formats.rows import Rows, RowSource, running
from sparse_engine.packings.base import Packing

STEP = 16
# Bytes that kernels read past the last position.
PADDING = 4


@dataclass(frozen=True, eq=False, repr=False)
class Groups(Packing):
    """`keep` values a group of `of` columns, in steps of 16 values, with log2(of) bits a value."""

    name: ClassVar[str] = "groups"
    kind: ClassVar[str] = "groups"
    backend: ClassVar[str] = "cpu"
    template: ClassVar[str] = "groups:{keep}:{of}"
    param_names: ClassVar[tuple[str, ...]] = ("keep", "of")
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "positions")

    positions: Tensor
    """uint8 [out x 2 log2(of) x steps + 4]."""
    keep: int
    of: int

    @classmethod
    def from_format(
        cls, weight: RowSource, dtype: torch.dtype | None = None, keep: int = 0, of: int = 0
    ) -> Self:
        """As `Packing.from_format`; `of` is 2, 4, 8 or 16, and 2 or 4 times `keep`.

        By default both are those of the weight, or 2:4.
        """
        if isinstance(weight, NM | Groups):
            keep, of = keep or weight.keep, of or weight.of
        return super().from_format(weight, dtype, keep=keep or 2, of=of or 4)

    @classmethod
    def _build(cls, source: RowSource, keep: int = 2, of: int = 4) -> dict[str, Any]:
        problem = cls.params_problem({"keep": keep, "of": of})
        if problem:
            raise UsageError(problem)
        if not isinstance(source, NM) or (source.keep, source.of) != (keep, of):
            source = NM.from_format(source, keep, of)
        steps = -(-source.shape[1] * keep // (STEP * of))
        width = (of - 1).bit_length()
        positions = source.positions  # the same bits, in rows of whole steps
        positions = pad(positions, (0, 2 * width * steps - positions.shape[1]))
        return {
            "values": pad(source.values, (0, steps * STEP - source.values.shape[1])),
            "positions": pad(positions.view(-1), (0, PADDING)),
            "keep": keep,
            "of": of,
        }

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

    def to_format(self, kind: type[Format], **params: int) -> Format:
        """As `Packing.to_format`; as the same N:M, float values and positions are copied."""
        same = kind is NM and params == {"keep": self.keep, "of": self.of}
        if not same or self.dtype not in VALUE_DTYPES:
            return super().to_format(kind, **params)
        count = -(-self.shape[1] // self.of) * self.keep
        size = -(-count * self.bits // 8)
        rows = self._position_rows()[:, :size]
        matrix = NM(
            self.shape, self.values[:, :count].contiguous(), rows.contiguous(), self.keep, self.of
        )
        # The kernels do not need positions that rise, the format does.
        return matrix if matrix.rises() else super().to_format(kind, **params)

    def _position_rows(self) -> Tensor:
        """Packed positions, uint8 [out, bytes]."""
        size = (self.shape[0], 2 * self.bits * self.steps)
        return self.positions[: len(self.positions) - PADDING].view(size)

    def row_costs(self) -> Tensor:
        """Values of a row."""
        return torch.full((self.shape[0],), self.steps * STEP, device=self.device)

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        count = self.steps * STEP
        position = unpack_numbers(self._position_rows()[begin:end], self.bits, count)
        values = self.values[begin:end]
        group = torch.arange(count, dtype=torch.int32, device=self.device) // self.keep
        kept = values != 0
        columns = (group * self.of + position)[kept]
        return Rows(running(kept.sum(1)), columns, values[kept]).sorted()

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        rows, columns = self.shape[0], self.steps * STEP
        check_buffer("groups values", self.values, self.value_dtypes, (rows, columns))
        size = rows * self.steps * 2 * self.bits + PADDING
        check_buffer("groups positions", self.positions, (torch.uint8,), (size,))
        check_zero("groups positions", self.positions[size - PADDING :].int())
        check_elements(self)
