"""CSR: compressed sparse rows; each non-zero is stored with its column.

W[i, indices[j]] = values[j] for pointers[i] <= j < pointers[i + 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.formats.checks import VALUE_DTYPES, check_buffer, check_shape
from sparse_engine.formats.compressed import Compressed
from sparse_engine.formats.rows import Rows, RowSource


@dataclass(frozen=True, eq=False, repr=False)
class CSR(Compressed):
    """Any pattern; 4 bytes of index a non-zero.

    ```
    W = | 5 . . 1 |     values   5 1 2 7 3       [nnz]      float32 or bfloat16
        | . . . . |     indices  0 3 1 2 3       [nnz]      int32, columns, rising within a row
        | . 2 7 3 |     pointers 0 2 2 5         [out + 1]  int32, where each row starts
    ```

    Zeros that are stored explicitly are allowed; `from_dense` and `from_format` store none.

    >>> CSR.from_dense(weight).to_dense()
    """

    name: ClassVar[str] = "csr"
    template: ClassVar[str] = "csr"
    torch_layout: ClassVar[torch.layout] = torch.sparse_csr

    @classmethod
    def empty(
        cls, shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str | None = None
    ) -> Self:
        """A matrix of zeros."""
        ints = torch.zeros(shape[0] + 1, dtype=torch.int32, device=device)
        return cls(shape, torch.zeros(0, dtype=dtype, device=device), ints[:0], ints)

    @classmethod
    def from_format(cls, weight: RowSource) -> Self:
        """Keep every element that is not zero."""
        empty = torch.zeros(0, dtype=weight.dtype, device=weight.device)
        return cls._assemble(weight.shape, (rows for _, rows in weight.row_chunks()), empty)

    def row_costs(self) -> Tensor:
        """Entries of each row."""
        return self.pointers.diff().long()

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        pointers = self.pointers[begin : end + 1].long()
        first, last = int(pointers[0]), int(pointers[-1])
        values = self.values[first:last]
        return Rows(pointers - first, self.indices[first:last], values).keep(values != 0)

    @property
    def block(self) -> tuple[int, int]:
        """An entry is one element."""
        return 1, 1

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix."""
        check_shape(self.name, self.shape)
        check_buffer("csr values", self.values, VALUE_DTYPES, ("nnz",))
        self._validate_entries()
