"""Base of CSR and BSR: entries with a column each, row pointers, exchange with torch and scipy.

Row i holds entries pointers[i] .. pointers[i + 1] - 1: elements in CSR, blocks in BSR.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.formats.base import Format
from sparse_engine.formats.checks import (
    INT32_MAX,
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_increasing,
    check_pointers,
    check_range,
    dtype_name,
)
from sparse_engine.formats.rows import Rows, Tiles, joined, positive_zeros


@dataclass(frozen=True, eq=False, repr=False)
class Compressed(Format):
    """Values, the column of each, and where each row starts."""

    buffer_names: ClassVar[tuple[str, ...]] = ("values", "indices", "pointers")
    torch_layout: ClassVar[torch.layout]

    indices: Tensor
    pointers: Tensor

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of one entry."""
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the matrix counted in entries, rounded up."""
        rows, cols = self.block
        return -(-self.shape[0] // rows), -(-self.shape[1] // cols)

    @classmethod
    def _assemble(
        cls, shape: tuple[int, int], pieces: Iterable[Rows | Tiles], empty: Tensor
    ) -> Self:
        """One matrix of consecutive pieces; `empty` has no entries and the values' dtype."""
        values, columns, counts = [], [], []
        for piece in pieces:
            values.append(piece.values)
            columns.append(piece.columns)
            counts.append(piece.pointers.diff().int())
        check_count(f"{cls.name}: entries", sum(map(len, columns)))
        none = torch.zeros(0, dtype=torch.int32, device=empty.device)
        return cls(
            shape=shape,
            values=joined(values, empty),
            indices=joined(columns, none),
            pointers=to_pointers(joined(counts, none)),
        )

    def _validate_entries(self) -> None:
        grid_rows, grid_cols = self.grid
        entries = self.values.shape[0]
        device = self.values.device
        ints = (torch.int32,)
        check_buffer(f"{self.name} indices", self.indices, ints, (entries,), device)
        check_buffer(f"{self.name} pointers", self.pointers, ints, (grid_rows + 1,), device)
        check_pointers(f"{self.name} pointers", self.pointers, entries)
        check_range(f"{self.name} indices", self.indices, grid_cols)
        check_increasing(f"{self.name} indices", self.indices, self.pointers)

    @classmethod
    def from_torch(cls, tensor: Tensor) -> Self:
        """From a torch tensor of the same layout, [out, in], float32 or bfloat16.

        Buffers are copied; unsorted columns are sorted, duplicates summed, stored zeros kept.
        """
        if not isinstance(tensor, Tensor) or tensor.layout != cls.torch_layout:
            kind = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UsageError(f"{cls.name}: expected a {cls.torch_layout} tensor, got {kind}")
        if tensor.dim() != 2 or tensor.dense_dim() != 0:
            raise UsageError(f"{cls.name}: expected [out, in], got {list(tensor.shape)}")
        tensor = tensor.detach()
        buffers = (tensor.values(), tensor.col_indices(), tensor.crow_indices())
        return cls._from_entries(tensor.shape, *(buffer.contiguous() for buffer in buffers))

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """From a scipy.sparse array or matrix of the same format, [out, in], float32.

        Buffers are copied and `matrix` is left as it is; unsorted columns are sorted, duplicates
        summed, stored zeros kept.
        """
        kind = getattr(matrix, "format", None)
        if kind != cls.name or not hasattr(matrix, "indptr"):
            found = f"scipy {kind}" if kind else type(matrix).__name__
            raise UsageError(f"{cls.name}: got {found}; convert it with .to{cls.name}() first")
        if matrix.data.dtype != "float32":
            raise UsageError(
                f"{cls.name}: expected float32, got {matrix.data.dtype}; use .astype('float32')"
            )
        if len(matrix.shape) != 2:
            raise UsageError(f"{cls.name}: expected [out, in], got shape {matrix.shape}")
        # scipy may keep room beyond the last entry.
        count = int(matrix.indptr[-1])
        buffers = (matrix.data[:count], matrix.indices[:count], matrix.indptr)
        return cls._from_entries(matrix.shape, *(torch.tensor(buffer) for buffer in buffers))

    @classmethod
    def _from_entries(cls, shape: Any, values: Tensor, indices: Tensor, pointers: Tensor) -> Self:
        """Canonical copy of buffers with int32 or int64 indices."""
        if values.dtype not in VALUE_DTYPES:
            raise UsageError(
                f"{cls.name}: expected float32 or bfloat16, got {dtype_name(values.dtype)}"
            )
        draft = cls((int(shape[0]), int(shape[1])), values, indices, pointers)
        problem = cls.params_problem(draft.params())
        if problem:
            raise UsageError(problem)
        if max(*draft.shape, values.shape[0]) > INT32_MAX:
            raise UsageError(f"{cls.name}: a size exceeds int32 ({INT32_MAX})")
        grid_rows, grid_cols = draft.grid
        ints, entries = (torch.int32, torch.int64), values.shape[0]
        check_buffer(f"{cls.name} indices", indices, ints, (entries,))
        check_buffer(f"{cls.name} pointers", pointers, ints, (grid_rows + 1,))
        check_pointers(f"{cls.name} pointers", pointers, entries)
        check_range(f"{cls.name} indices", indices, grid_cols)
        result = cls(draft.shape, *_canonical(positive_zeros(values), indices, pointers, grid_cols))
        result.validate()
        return result

    def to_torch(self) -> Tensor:
        """A torch tensor of the same layout with int64 indices; buffers are copied."""
        self._refuse_padding("torch")
        return torch.sparse_compressed_tensor(
            self.pointers.long(),
            self.indices.long(),
            self.values.clone(),
            self.shape,
            layout=self.torch_layout,
            check_invariants=True,
        )

    def to_scipy(self) -> Any:
        """A scipy.sparse array of the same format on the host; buffers are copied; float32 only."""
        self._refuse_padding("scipy")
        if self.dtype != torch.float32:
            raise UsageError(
                f"scipy has no {dtype_name(self.dtype)}: "
                f"use {type(self).__name__}.from_dense(matrix.to_dense().float(), ...).to_scipy()"
            )
        # Imported here: it is slow, and only needed here.
        from scipy import sparse

        make = getattr(sparse, f"{self.name}_array")
        buffers = (self.values, self.indices, self.pointers)
        data, indices, pointers = (buffer.detach().cpu().numpy().copy() for buffer in buffers)
        return make((data, indices, pointers), shape=self.shape)

    def _refuse_padding(self, target: str) -> None:
        (rows, cols), (grid_rows, grid_cols) = self.block, self.grid
        padded = (grid_rows * rows, grid_cols * cols)
        if padded != self.shape:
            raise UsageError(
                f"{target} needs a shape that is a multiple of the block {rows}x{cols}, got "
                f"{list(self.shape)}: pad the weight to {list(padded)} first, or use CSR"
            )


def row_ids(pointers: Tensor) -> Tensor:
    """Row of each entry, int64 [entries], from pointers [rows + 1]."""
    rows = torch.arange(pointers.numel() - 1, device=pointers.device)
    return rows.repeat_interleave(pointers.diff().long())


def to_pointers(counts: Tensor) -> Tensor:
    """int32 [rows + 1] pointers from entries per row [rows]."""
    pointers = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=pointers[1:])
    return pointers


def _canonical(
    values: Tensor, indices: Tensor, pointers: Tensor, grid_cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries sorted by row and column, duplicates summed in their order, int32 indices."""
    keys = row_ids(pointers) * grid_cols + indices
    if not bool((keys[1:] <= keys[:-1]).any()):
        return values, indices.to(torch.int32, copy=True), pointers.to(torch.int32, copy=True)
    order = keys.argsort(stable=True)
    keys, values = keys[order], values[order]
    fresh = keys.new_ones(keys.numel(), dtype=torch.bool)
    fresh[1:] = keys[1:] != keys[:-1]
    unique = keys[fresh]
    if unique.numel() < keys.numel():
        sums = values.new_zeros(unique.numel(), *values.shape[1:])
        values = sums.index_add_(0, fresh.cumsum(0) - 1, values)
    counts = (unique // grid_cols).bincount(minlength=pointers.numel() - 1)
    return values, (unique % grid_cols).int(), to_pointers(counts)
