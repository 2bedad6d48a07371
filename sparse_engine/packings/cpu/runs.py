"""Runs: an unstructured weight as the CPU kernels read it; csrc/layouts/runs.h draws the layout.

Inside a chunk of rows and a K-block of columns, rows are sorted by their number of non-zeros and
taken in pairs; a pair is three loops: columns of both rows, columns of one beside one of the other,
and what the second row has more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

# Importing torch first matters: the extension then binds to torch's OpenMP.
from sparse_engine import _core
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.checks import (
    INT32_MAX,
    check_buffer,
    check_shape,
    check_zero,
)
from sparse_engine.formats.rows import Rows, RowSource, joined, running
from sparse_engine.packings.base import Packing

# Elements that are packed at once: enough for a chunk a thread.
PACKED_AT_ONCE = 1 << 20
# Values travel as integers of their size.
RAW = {1: torch.int8, 2: torch.int16, 4: torch.int32}
# Columns whose slice of the widest panel stays in L1 beside weights and results: 32 KiB. Panels are
# twice as wide with AVX-512.
K_BLOCK, AVX512_K_BLOCK = 256, 128
# Rows of a chunk: as many as keep its results (192 KiB at 64 tokens) in L2, since every chunk loads
# the panel anew; fewer where there would be too few chunks for the threads.
MAX_CHUNK, MIN_CHUNK = 768, 64


def chunk_rows(out_features: int) -> int:
    """Rows of a chunk on this machine, with the threads that torch uses now."""
    share = -(-out_features // torch.get_num_threads())
    return max(MIN_CHUNK, min(MAX_CHUNK, share))


def k_block() -> int:
    """Columns of a K-block on this machine."""
    return AVX512_K_BLOCK if "avx512" in _core.capabilities() else K_BLOCK


@dataclass(frozen=True, eq=False, repr=False)
class Runs(Packing):
    """Pairs of rows with the columns that they share, and those that they do not.

    One byte of index a column, two a row and K-block, eight for pairs of equal lengths.
    """

    name: ClassVar[str] = "runs"
    kind: ClassVar[str] = "runs"
    backend: ClassVar[str] = "cpu"
    quad: ClassVar[int] = 1
    """Columns that are one entry."""
    template: ClassVar[str] = "runs:{chunk}:{block}"
    param_names: ClassVar[tuple[str, ...]] = ("chunk", "block")
    buffer_names: ClassVar[tuple[str, ...]] = (
        "values",
        "columns",
        "rows",
        "stretches",
        "starts",
    )

    columns: Tensor
    """uint8 [columns]: inside the K-block."""
    rows: Tensor
    """uint16 [2 pairs + 2]: inside the chunk; the last two are read but not used."""
    stretches: Tensor
    """uint16 [stretches, 4]: pairs, shared, own, rest."""
    starts: Tensor
    """int32 [chunks x K-blocks + 1, 4]: first stretch, row, column and value of each."""
    chunk: int
    block: int

    @classmethod
    def _build(
        cls, source: RowSource, chunk: int | None = None, block: int | None = None
    ) -> dict[str, Any]:
        chunk = chunk or chunk_rows(source.shape[0])
        block = block or k_block()
        problem = cls.params_problem({"chunk": chunk, "block": block})
        if problem:
            raise UsageError(problem)
        if source.device.type != "cpu":
            raise UsageError(f"runs are packed on the CPU, the weight is on {source.device}")
        parts: list[dict[str, Tensor]] = []
        for begin, end in source.ranges(chunk, limit=PACKED_AT_ONCE):
            rows = _together([cls._entries(source, *span) for span in source.pieces(begin, end)])
            packed = _core.pack_runs(
                pointers=rows.pointers.int().numpy(),
                columns=rows.columns.numpy(),
                values=rows.values.view(RAW[rows.values.element_size()]).numpy(),
                out=end - begin,
                in_features=-(-source.shape[1] // cls.quad),
                chunk=chunk,
                block=block,
            )
            parts.append({name: torch.from_numpy(array) for name, array in packed.items()})
        buffers = _join(parts)
        buffers["values"] = cls._typed(buffers["values"], source.dtype)
        return {**buffers, "chunk": chunk, "block": block}

    @classmethod
    def _entries(cls, source: RowSource, begin: int, end: int) -> Rows:
        """Some rows as the packing counts their columns."""
        return source.read_rows(begin, end)

    @classmethod
    def _typed(cls, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The values from their bytes."""
        return values.view(dtype) if len(values) else torch.zeros(0, dtype=dtype)

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with chunk or block, in one line, or None."""
        for key, limit in {"chunk": 65535, "block": 256}.items():
            if type(params[key]) is not int or not 1 <= params[key] <= limit:
                return f"{cls.name}: {key} must lie in 1..{limit}, got {params[key]}"
        return None

    @property
    def width(self) -> int:
        """Columns of the matrix as the packing counts them."""
        return -(-self.shape[1] // self.quad)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of (chunks, K-blocks); there is one K-block even without inputs."""
        return -(-self.shape[0] // self.chunk), max(1, -(-self.width // self.block))

    @property
    def unit(self) -> int:
        """Rows of a chunk."""
        return self.chunk

    def row_costs(self) -> Tensor:
        """Values of each row, as they are on average in its chunk."""
        values = self.starts[:: self.grid[1], 3].long().diff() * self.quad
        return (values // self.chunk).repeat_interleave(self.chunk)[: self.shape[0]]

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        pointers, columns, values = self._read_entries(begin, end)
        return Rows(pointers, columns, values).keep(values != 0)

    def _read_entries(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pointers, columns and values of some rows; raises ValueError for damaged buffers."""
        flat = self.values.view(-1).view(RAW[self.values.element_size() * self.quad])
        pointers, columns, values = _core.rows_of_runs(
            values=flat.numpy(),
            columns=self.columns.numpy(),
            rows=self.rows.numpy(),
            stretches=self.stretches.numpy(),
            starts=self.starts.numpy(),
            out=self.shape[0],
            in_features=self.width,
            chunk=self.chunk,
            block=self.block,
            begin=begin,
            end=end,
        )
        found = self._typed(torch.from_numpy(values), self.values.dtype)
        return torch.from_numpy(pointers), torch.from_numpy(columns), found

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        self._validate_values()
        count = self.values.shape[0]
        check_buffer("runs columns", self.columns, (torch.uint8,), ("columns",))
        check_buffer("runs rows", self.rows, (torch.uint16,), ("rows",))
        check_buffer("runs stretches", self.stretches, (torch.uint16,), ("stretches", 4))
        chunks, blocks = self.grid
        segments = chunks * blocks
        check_buffer("runs starts", self.starts, (torch.int32,), (segments + 1, 4))
        whole = [len(self.stretches), len(self.rows) - 2, len(self.columns), count]
        if self.starts[0].any() or self.starts[-1].tolist() != whole:
            raise InvalidFileError("runs starts: do not cover the buffers")
        check_zero("runs rows", self.rows[-2:].int())
        try:
            for begin, end in self.ranges():
                self._validate_entries(begin, end)
        except ValueError as error:  # of the extension: InvalidFileError is one as well
            raise InvalidFileError(str(error)) from None

    def _validate_entries(self, begin: int, end: int) -> None:
        """Raise ValueError unless whole chunks of rows are sound."""
        self._read_entries(begin, end)

    def _validate_values(self) -> None:
        check_buffer("runs values", self.values, self.value_dtypes, ("values",))


def _together(pieces: list[Rows]) -> Rows:
    """Consecutive pieces, of which there is at least one, as one; clears the list."""
    if len(pieces) == 1:
        return pieces.pop()
    counts = torch.cat([piece.pointers.diff() for piece in pieces])
    columns, values = [piece.columns for piece in pieces], [piece.values for piece in pieces]
    empty = pieces[0].values[:0]
    pieces.clear()
    return Rows(running(counts), joined(columns, empty), joined(values, empty))


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The buffers of consecutive chunks as one; clears the list's dicts, so that less is held."""
    ends = torch.zeros(4, dtype=torch.int64)
    starts = []
    for part in parts:
        begins = part.pop("starts").long() + ends
        starts.append(begins[:-1].int())
        ends = begins[-1]
        if int(ends.max()) > INT32_MAX:
            raise UsageError("runs: a buffer outgrows int32; split the weight")
        part["rows"] = part["rows"][:-2]  # the kernels look one pair ahead, past the last chunk
    parts.append({"rows": torch.zeros(2, dtype=torch.uint16)})
    none = {"stretches": torch.zeros(0, 4, dtype=torch.uint16)}
    empty = torch.zeros(0, dtype=torch.uint8)
    buffers = {
        name: joined([part.pop(name) for part in parts if name in part], none.get(name, empty))
        for name in ("values", "columns", "rows", "stretches")
    }
    return {**buffers, "starts": torch.cat([*starts, ends.int()[None]])}
