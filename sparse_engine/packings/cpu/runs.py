"""Runs: an unstructured weight as the CPU kernels read it; csrc/layouts/runs.h draws the layout.

Inside a chunk of rows and a K-block of columns, rows are sorted by their number of non-zeros and
taken in pairs; a pair is three loops: columns of both rows, columns of one beside one of the other,
and what the second row has more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

# Importing torch first matters: the extension then binds to torch's OpenMP.
from sparse_engine import _core
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import CSR
from sparse_engine.formats.base import Format
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_range,
    check_shape,
    check_weight,
    check_zero,
)

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


@dataclass(frozen=True, eq=False, repr=False)
class Runs(Format):
    """Pairs of rows with the columns that they share, and those that they do not.

    One byte of index a column, two a row and K-block, eight for pairs of equal lengths.
    """

    name: ClassVar[str] = "runs"
    kind: ClassVar[str] = "runs"
    """The name of the layout that the kernels read."""
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
    def from_csr(cls, weight: CSR, chunk: int | None = None, block: int | None = None) -> Self:
        """Pack `weight`, float32 or bfloat16."""
        buffers = pack_pattern(weight, weight.values, chunk, block)
        return cls(shape=weight.shape, **buffers)  # type: ignore[arg-type]

    @classmethod
    def from_dense(cls, weight: Tensor, chunk: int | None = None, block: int | None = None) -> Self:
        """Pack a weight [out, in], float32 or bfloat16."""
        return cls.from_csr(CSR.from_dense(check_weight(weight)), chunk, block)

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
        return self.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of (chunks, K-blocks); there is one K-block even without inputs."""
        return -(-self.shape[0] // self.chunk), max(1, -(-self.width // self.block))

    def entries(self) -> tuple[Tensor, Tensor]:
        """Row and column of each value, int64."""
        place, segment, column = self._places()
        blocks = self.grid[1]
        return place + segment // blocks * self.chunk, column + segment % blocks * self.block

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row inside its chunk, (chunk, K-block), and column inside it, of each value, int64."""
        device = self.device
        per_pair = self.stretches.long().repeat_interleave(self.stretches[:, 0].long(), 0)
        shared, own, rest = per_pair[:, 1], per_pair[:, 2], per_pair[:, 3]
        counts = 2 * (shared + own) + rest  # values of a pair
        pair = torch.arange(len(counts), device=device).repeat_interleave(counts)
        i = torch.arange(len(pair), device=device) - (counts.cumsum(0) - counts)[pair]
        columns = shared + 2 * own + rest
        first = (columns.cumsum(0) - columns)[pair]
        in_shared = i < 2 * shared[pair]
        column = first + torch.where(in_shared, i // 2, i - shared[pair])
        second = torch.where(i < 2 * (shared + own)[pair], i % 2, 1)
        pairs = self.starts[:, 1].long().diff() // 2  # of each segment
        segment = torch.arange(len(pairs), device=device).repeat_interleave(pairs)[pair]
        return self.rows.long()[2 * pair + second], segment, self.columns.long()[column]

    def to_dense(self) -> Tensor:
        """The matrix [out, in]."""
        dense = self.values.new_zeros(self.shape)
        dense[self.entries()] = self.values
        return dense

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
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
        stretches, starts = self.stretches.long(), self.starts.long()
        pairs, shared, own, rest = stretches.unbind(1)
        sizes = torch.stack(
            [
                torch.ones_like(pairs),
                2 * pairs,
                pairs * (shared + 2 * own + rest),
                pairs * (2 * (shared + own) + rest),
            ],
            1,
        )
        ends = torch.cat([sizes.new_zeros(1, 4), sizes.cumsum(0)])
        whole = torch.tensor([len(pairs), len(self.rows) - 2, len(self.columns), count])
        at = starts[:, 0]
        if bool((at < 0).any()) or bool((at > len(pairs)).any()) or bool((at.diff() < 0).any()):
            raise InvalidFileError("runs starts: do not rise within the stretches")
        if not torch.equal(ends[-1], whole) or not torch.equal(starts, ends[at]):
            raise InvalidFileError("runs starts: do not fit the stretches and buffers")
        if starts[0].any() or not torch.equal(starts[-1], whole):
            raise InvalidFileError("runs starts: do not cover the buffers")
        if bool((shared + own + rest > self.block).any()):
            raise InvalidFileError("runs stretches: a row has more columns than a K-block")
        self._validate_places(starts)

    def _validate_values(self) -> None:
        check_buffer("runs values", self.values, VALUE_DTYPES, ("values",))

    def _validate_places(self, starts: Tensor) -> None:
        """Columns lie in their K-block, every row of a chunk stands once where it must."""
        chunks, blocks = self.grid
        of_column = torch.arange(chunks * blocks).repeat_interleave(starts[:, 2].diff())
        last = self.width - (blocks - 1) * self.block
        columns = self.columns.long()
        check_range("runs columns", columns, self.block)
        check_range("runs columns", columns[of_column % blocks == blocks - 1], last)
        rows = self.rows[: len(self.rows) - 2].long()
        check_zero("runs rows", self.rows[len(self.rows) - 2 :].int())
        segment = torch.arange(chunks * blocks).repeat_interleave(starts[:, 1].diff())
        alone = rows == self.chunk  # the place that nobody reads
        check_range("runs rows", rows, self.chunk + 1)
        row = segment // blocks * self.chunk + rows
        if bool((row[~alone] >= self.shape[0]).any()):
            raise InvalidFileError(f"runs rows: expected values below {self.shape[0]}")
        place = (segment * (self.chunk + 1) + rows)[~alone]
        if len(place.unique()) != len(place):
            raise InvalidFileError("runs rows: a row stands twice in a K-block")
        firsts = starts[:, 1].diff().view(chunks, blocks)[:, 0]
        sizes = (self.shape[0] - torch.arange(chunks) * self.chunk).clamp(max=self.chunk)
        if (
            not torch.equal(firsts, (sizes + 1) // 2 * 2)
            or int((~alone & (segment % blocks == 0)).sum()) != self.shape[0]
        ):
            raise InvalidFileError("runs rows: each row must stand once in the first K-block")
        if bool((self._places()[0] == self.chunk).any()):
            raise InvalidFileError("runs: a value stands in no row")
        row, column = self.entries()
        keys = row * max(self.width, 1) + column
        if len(keys.unique()) != len(keys):
            raise InvalidFileError("runs: an element is stored twice")


def pack_pattern(
    weight: CSR, values: Tensor, chunk: int | None, block: int | None
) -> dict[str, Tensor | int]:
    """Buffers and parameters of a packing of `weight`'s pattern, with `values` [entries] to match."""
    chunk = chunk or chunk_rows(weight.shape[0])
    block = block or (AVX512_K_BLOCK if "avx512" in _core.capabilities() else K_BLOCK)
    if values.device.type != "cpu":
        raise UsageError(f"runs are packed on the CPU, the weight is on {values.device}")
    raw = values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32)
    packed = _core.pack_runs(
        pointers=weight.pointers.numpy(),
        columns=weight.indices.numpy(),
        values=raw.numpy(),
        out=weight.shape[0],
        in_features=weight.shape[1],
        chunk=chunk,
        block=block,
    )
    buffers = {name: torch.from_numpy(array) for name, array in packed.items()}
    got = buffers["values"]
    buffers["values"] = got.view(values.dtype) if len(got) else values.new_zeros(0)
    return {**buffers, "chunk": chunk, "block": block}
