"""Format: a sparse weight as named buffers, and how one format becomes another.

A subclass defines how its rows are read (`row_costs`, `read_rows`) and how it is built from the
rows of another weight (`from_format`). Conversion to and from dense, sizes and serialisation follow
from these.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats.checks import check_names, dtype_name, first
from sparse_engine.formats.dense import Dense
from sparse_engine.formats.rows import RowSource


@dataclass(frozen=True, eq=False, repr=False)
class Format(RowSource):
    """A sparse weight [out, in].

    The constructor stores its arguments unchecked. Use `from_tensors` for buffers that come from
    outside, `from_dense` for a dense weight and `from_format` for a sparse one.

    Attributes:
        shape: (out, in).
        values: The stored values; which ones, and in which order, is the subclass's.
    """

    name: ClassVar[str]
    template: ClassVar[str]
    param_names: ClassVar[tuple[str, ...]] = ()
    buffer_names: ClassVar[tuple[str, ...]]

    shape: tuple[int, int]
    values: Tensor

    @classmethod
    @abstractmethod
    def from_format(cls, weight: RowSource, *args: Any, **params: Any) -> Self:
        """Store a sparse weight, value by value and without a dense matrix.

        Needs at most twice the memory of the result, plus one chunk (formats/rows.py).

        Raises:
            UsageError: The weight or the parameters do not fit the format.
        """

    @abstractmethod
    def validate(self) -> None:
        """Raise InvalidFileError, saying what is wrong, unless the buffers describe one matrix."""

    @classmethod
    def from_dense(cls, weight: Tensor, *args: Any, **params: Any) -> Self:
        """Store a dense weight bit for bit; only -0.0 becomes +0.0.

        Args:
            weight: [out, in], float32 or bfloat16.
            args: The parameters in the order of `from_format`.
            params: The same by name.

        Raises:
            UsageError: The weight or the parameters do not fit the format.
        """
        return cls.from_format(Dense.of(weight), *args, **params)

    def to_format(self, kind: type[Format], **params: int) -> Format:
        """The weight in the format `kind` with `params`, without a dense matrix.

        Raises:
            UsageError: The weight does not fit the format.
        """
        same = type(self) is kind and self.params() == params
        return self if same else kind.from_format(self, **params)

    @classmethod
    def from_tensors(
        cls, shape: Sequence[int], params: Mapping[str, int], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Rebuild from `shape`, `params()` and `tensors()`; raises InvalidFileError."""
        check_names(f"{cls.name} parameters", params, cls.param_names)
        check_names(f"{cls.name} buffers", tensors, cls.buffer_names)
        own = {field.name for field in fields(cls)}
        extra = {key: value for key, value in params.items() if key in own}
        result = cls(tuple(shape), **tensors, **extra)  # type: ignore[arg-type]
        result.validate()
        if result.params() != dict(params):
            raise InvalidFileError(
                f"{cls.name} parameters: expected {dict(params)}, buffers have {result.params()}"
            )
        return result

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with the parameters, in one line, or None."""
        return None

    def params(self) -> dict[str, int]:
        """The parameters by name, e.g. `{"rows": 4, "cols": 1}`."""
        return {name: getattr(self, name) for name in self.param_names}

    def tensors(self) -> dict[str, Tensor]:
        """The buffers by name: plain dense tensors, ready for a state dict or safetensors."""
        return {name: getattr(self, name) for name in self.buffer_names}

    def to(self, device: torch.device | str) -> Self:
        """The same matrix on `device`; buffers that are already there are shared."""
        moved = {name: buffer.to(device) for name, buffer in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    @property
    def spec(self) -> str:
        """The format and its parameters as a text, e.g. "bsr:4x1"."""
        return self.template.format(**self.params())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values, as torch has it."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of all buffers."""
        return self.values.device

    @property
    def stored(self) -> int:
        """Number of stored values: non-zeros, zeros kept on purpose, and padding."""
        return self.values.numel()

    @property
    def nnz(self) -> int:
        """Number of elements that are not zero (NaN is not zero); reads all values."""
        return int(self.values.count_nonzero())

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the matrix, 0..1; 0 for a matrix without elements."""
        elements = self.shape[0] * self.shape[1]
        return 1.0 - self.nnz / elements if elements else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers together."""
        return sum(buffer.nbytes for buffer in self.tensors().values())

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: caches beside them are not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __repr__(self) -> str:
        """One line: spec, shape, dtype, device, stored values and bytes."""
        out_features, in_features = self.shape
        return (
            f"<{self.spec} [{out_features}, {in_features}] {dtype_name(self.dtype)} "
            f"on {self.device}, {self.stored} stored, {self.nbytes} bytes>"
        )


def check_elements(weight: Format) -> None:
    """Raise InvalidFileError unless every value that is not zero has a place of its own.

    For formats whose buffers could also describe places outside the matrix, or one place twice.
    """
    found = 0
    for begin, rows in weight.row_chunks():
        at = first((rows.columns < 0) | (rows.columns >= weight.shape[1]))
        if at is not None:
            raise InvalidFileError(f"{weight.name}: a value lies outside the matrix")
        keys = rows.row_ids().mul_(1 << 32).add_(rows.columns)
        at = first(keys[1:] == keys[:-1])
        if at is not None:
            row, column = begin + int(keys[at] >> 32), int(rows.columns[at])
            raise InvalidFileError(f"{weight.name}: element [{row}, {column}] is stored twice")
        found += len(rows.columns)
    if found != weight.nnz:
        raise InvalidFileError(f"{weight.name}: a value lies outside the matrix")
