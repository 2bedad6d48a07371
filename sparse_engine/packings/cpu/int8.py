"""int8: the CPU packings with integers for values and one float scale an output row.

W[r, c] = integer * scales[r], symmetric, scales[r] = max |W[r]| / 127 (packings/values.py). The
kernels of QuadRuns and Bits8 quantise activations token by token while the op runs; those of SellP8
and Groups8 widen the integers, so that activations keep their precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import NM
from sparse_engine.formats.checks import check_buffer, check_zero
from sparse_engine.formats.rows import Rows, RowSource
from sparse_engine.packings.cpu.bits import Bits
from sparse_engine.packings.cpu.groups import Groups
from sparse_engine.packings.cpu.runs import Runs
from sparse_engine.packings.cpu.sellp import PackedSellP
from sparse_engine.packings.values import Numbers, check_scales, check_symmetric

INT8 = (torch.int8,)
# Sums of int32 stay exact: 65536 x 127 x 127, and 128 x 127 x 65536 of the corrections.
MAX_INPUTS = 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class QuadRuns(Runs):
    """Runs of int8: four columns side by side count as one, for one instruction.

    W[r, c] = values[e, c % 4] * scales[r] for the entry e of (r, c // 4). A quad with a single
    non-zero is stored whole.
    """

    name: ClassVar[str] = "quad_runs"
    template: ClassVar[str] = "quad_runs:{chunk}:{block}"
    buffer_names: ClassVar[tuple[str, ...]] = (*Runs.buffer_names, "scales", "corrections")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = INT8
    quad: ClassVar[int] = 4

    scales: Tensor
    """float32 [out]."""
    corrections: Tensor
    """int32 [chunks x chunk + 1]: -128 x the sum of a row's values (csrc/layouts/runs.h)."""

    @classmethod
    def _build(
        cls, source: RowSource, chunk: int | None = None, block: int | None = None
    ) -> dict[str, Any]:
        _check_inputs(source.shape[1], UsageError)
        return super()._build(source, chunk, block)

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        count = _corrected(source.shape[0], buffers["chunk"])
        corrections = torch.zeros(count, dtype=torch.int32)
        corrections[: source.shape[0]] = -128 * source.sums
        return {"scales": source.scales, "corrections": corrections}

    @classmethod
    def _entries(cls, source: RowSource, begin: int, end: int) -> Rows:
        quads = source.read_tiles(begin, end, 1, 4)
        return Rows(quads.pointers, quads.columns, quads.values.view(-1).view(torch.int32))

    @classmethod
    def _typed(cls, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.view(torch.int8).view(-1, 4)

    def read_rows(self, begin: int, end: int) -> Rows:
        """The integers of rows begin to end - 1 that are not zero."""
        pointers, quads, values = self._read_entries(begin, end)
        columns = (quads[:, None] * 4 + torch.arange(4, dtype=torch.int32)).view(-1)
        values = values.view(-1)
        return Rows(pointers * 4, columns, values).keep(values != 0)

    def _validate_values(self) -> None:
        check_buffer("runs values", self.values, INT8, ("values", 4))
        check_symmetric(self.values)
        check_scales("runs", self.scales, self.shape[0], self.device)
        size = _corrected(self.shape[0], self.chunk)
        check_buffer("runs corrections", self.corrections, (torch.int32,), (size,))
        _check_inputs(self.shape[1], InvalidFileError)

    def _validate_entries(self, begin: int, end: int) -> None:
        pointers, quads, values = self._read_entries(begin, end)
        tail = -self.shape[1] % 4
        if tail:
            check_zero("runs values", values[quads == self.width - 1][:, 4 - tail :])
        rows = Rows(pointers, quads, values)
        _check_corrections("runs", rows, values.sum(1), self.corrections[begin:end])


@dataclass(frozen=True, eq=False, repr=False)
class SellP8(PackedSellP):
    """SELL-P of int8."""

    name: ClassVar[str] = "sellp8"
    template: ClassVar[str] = "sellp8"
    buffer_names: ClassVar[tuple[str, ...]] = (*PackedSellP.buffer_names, "scales")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = INT8

    scales: Tensor
    """float32 [out]."""

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"scales": source.scales}

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        super().validate()
        check_scales("sellp", self.scales, self.shape[0], self.device)


@dataclass(frozen=True, eq=False, repr=False)
class Bits8(Bits):
    """Bits of int8."""

    name: ClassVar[str] = "bits8"
    template: ClassVar[str] = "bits8"
    buffer_names: ClassVar[tuple[str, ...]] = (*Bits.buffer_names, "scales", "corrections")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = INT8

    scales: Tensor
    """float32 [out]."""
    corrections: Tensor
    """int32 [out]: -128 x the sum of a row's values, since activations come as x + 128."""

    @classmethod
    def _build(cls, source: RowSource) -> dict[str, Any]:
        _check_inputs(source.shape[1], UsageError)
        return super()._build(source)

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"scales": source.scales, "corrections": -128 * source.sums}

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        super().validate()
        check_scales("bits", self.scales, self.shape[0], self.device)
        _check_inputs(self.shape[1], InvalidFileError)
        check_symmetric(self.values)
        check_buffer("bits corrections", self.corrections, (torch.int32,), (self.shape[0],))
        for begin, rows in self.row_chunks():
            some = self.corrections[begin : begin + len(rows.pointers) - 1]
            _check_corrections("bits", rows, rows.values, some)


@dataclass(frozen=True, eq=False, repr=False)
class Groups8(Groups):
    """Groups of int8."""

    name: ClassVar[str] = "groups8"
    template: ClassVar[str] = "groups8:{keep}:{of}"
    buffer_names: ClassVar[tuple[str, ...]] = (*Groups.buffer_names, "scales")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = INT8

    scales: Tensor
    """float32 [out]."""

    @classmethod
    def _build(cls, source: RowSource, keep: int = 2, of: int = 4) -> dict[str, Any]:
        matrix = getattr(source, "weight", None)
        if isinstance(matrix, NM) and (matrix.keep, matrix.of) == (keep, of):
            assert isinstance(source, Numbers)
            source = _quantised(source, matrix)
        return super()._build(source, keep, of)

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"scales": source.scales}

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        super().validate()
        check_scales("groups", self.scales, self.shape[0], self.device)


Runs.int8, PackedSellP.int8, Bits.int8, Groups.int8 = QuadRuns, SellP8, Bits8, Groups8


def _quantised(source: Numbers, matrix: NM) -> NM:
    """The matrix that `source` reads, with its integers at the same positions."""
    values = torch.zeros_like(matrix.values, dtype=torch.int8)
    for begin, end in matrix.ranges():
        row = torch.arange(end - begin, device=values.device)
        row = row.repeat_interleave(values.shape[1])
        part = source.integers(matrix.values[begin:end].reshape(-1), row, begin, end)
        values[begin:end] = part.view(end - begin, -1)
    return replace(matrix, values=values)


def _corrected(out_features: int, chunk: int) -> int:
    """Corrections of QuadRuns: one a row of whole chunks, and one that is read past them."""
    return -(-out_features // chunk) * chunk + 1


def _check_inputs(in_features: int, error: type[UsageError | InvalidFileError]) -> None:
    if in_features > MAX_INPUTS:
        raise error(f"int8: at most {MAX_INPUTS} inputs, got {in_features}")


def _check_corrections(name: str, rows: Rows, values: Tensor, corrections: Tensor) -> None:
    """Compare the corrections of some rows with the sums of their values [entries]."""
    sums = torch.zeros(len(corrections), dtype=torch.int32, device=values.device)
    sums.index_add_(0, rows.row_ids(), values.int())
    if not torch.equal(corrections, -128 * sums):
        raise InvalidFileError(f"{name} corrections: are not -128 x the sums of the rows")
