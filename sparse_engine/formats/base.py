"""What every sparse matrix format offers: to and from dense, named buffers, validation, sizes.

A format is a frozen set of plain dense tensors plus the shape of the matrix they stand for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats.checks import check_names, dtype_name


@dataclass(frozen=True, eq=False, repr=False)
class Format(ABC):
    """A sparse weight [out, in].

    The constructor stores what it is given. `from_tensors` is the checked way in for buffers that
    come from outside; `from_dense` makes valid buffers.
    """

    name: ClassVar[str]
    template: ClassVar[str]
    param_names: ClassVar[tuple[str, ...]] = ()
    buffer_names: ClassVar[tuple[str, ...]]

    shape: tuple[int, int]
    values: Tensor

    @classmethod
    @abstractmethod
    def from_dense(cls, weight: Tensor, *args: Any, **params: Any) -> Self:
        """Store a weight [out, in], float32 or bfloat16, bit for bit; only -0.0 becomes +0.0.

        Raises UsageError for a weight or parameters that the format cannot hold.
        """

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The matrix [out, in], on the same device and in the same dtype."""

    @abstractmethod
    def validate(self) -> None:
        """Raise InvalidFileError, saying what is wrong, unless the buffers describe one matrix."""

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
        """What `from_dense` needs besides the weight, e.g. `{"rows": 4, "cols": 1}`."""
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
        """The text of the format and its parameters, e.g. "bsr:4x1"."""
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
        """The fields alone: what ops keep beside a packing is not copied with it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __repr__(self) -> str:
        """One line: spec, shape, dtype, device, stored values and bytes."""
        out_features, in_features = self.shape
        return (
            f"<{self.spec} [{out_features}, {in_features}] {dtype_name(self.dtype)} "
            f"on {self.device}, {self.stored} stored, {self.nbytes} bytes>"
        )


def positive_zeros(values: Tensor) -> Tensor:
    """A copy of `values` with +0.0 for -0.0; everything else keeps its bits, NaN payloads too."""
    return values.masked_fill(values == 0, 0.0)
