"""Packing: a weight in the layout that the kernels of one backend read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.formats import Format
from sparse_engine.formats.checks import VALUE_DTYPES, dtype_name
from sparse_engine.formats.dense import Dense
from sparse_engine.formats.rows import RowSource
from sparse_engine.packings.values import Numbers, numbers


@dataclass(frozen=True, eq=False, repr=False)
class Packing(Format):
    """A weight [out, in] as kernels read it: made from a format, and back without loss.

    Attributes:
        kind: The layout's name in C++ or in the kernels' names.
        backend: Whose kernels read it, "cpu" or "cuda"; only backends/ interprets it.
        value_dtypes: What the values may be.
        int8: The class that holds this layout with int8 values, where that is another one.
    """

    kind: ClassVar[str]
    backend: ClassVar[str]
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = VALUE_DTYPES
    int8: ClassVar[type[Packing] | None] = None

    @classmethod
    def from_format(
        cls, weight: RowSource, dtype: torch.dtype | None = None, *args: Any, **layout: Any
    ) -> Self:
        """Pack a weight, value by value and without a dense matrix.

        Args:
            weight: A format, or another packing.
            dtype: Of the values; by default the weight's own. int8 quantises row by row.
            layout: Sizes of the layout, such as `chunk`; by default those of this machine.

        Returns:
            A packing of this class, or of `int8` where the values are int8 and it has another one.

        Raises:
            UsageError: The weight, the dtype or the sizes do not fit the layout.
        """
        dtype = dtype or weight.dtype
        if cls.value_dtypes == (torch.int8,):
            dtype = torch.int8
        elif dtype == torch.int8 and cls.int8 is not None:
            return cls.int8.from_format(weight, dtype, **layout)  # type: ignore[return-value]
        if dtype not in cls.value_dtypes:
            raise UsageError(f"no {cls.backend} kernel has weights of {dtype_name(dtype)}")
        source = numbers(weight, dtype)
        buffers = cls._build(source, **layout)
        if isinstance(source, Numbers):
            buffers.update(cls._scaling(source, buffers))
        return cls(shape=weight.shape, **buffers)

    @classmethod
    @abstractmethod
    def _build(cls, source: RowSource, *args: Any, **layout: Any) -> dict[str, Any]:
        """Buffers and parameters for the values of `source`, as they are."""

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Further buffers, once all of `source` was read."""
        return {}

    @classmethod
    def from_dense(
        cls, weight: Tensor, dtype: torch.dtype | None = None, *args: Any, **layout: Any
    ) -> Self:
        """Pack a dense weight [out, in], float32 or bfloat16; the rest as `from_format`."""
        return cls.from_format(Dense.of(weight), dtype, **layout)

    def to_format(self, kind: type[Format], **params: int) -> Format:
        """The weight in a format, without a dense matrix; int8 and float16 become float32.

        Raises:
            UsageError: The weight does not fit the format.
        """
        return kind.from_format(self._floats(), **params)

    def to_dense(self) -> Tensor:
        """The matrix [out, in]; of int8 what integers and scales mean, float32."""
        quantised = self.dtype == torch.int8
        return Numbers(self, torch.float32).to_dense() if quantised else super().to_dense()

    def _floats(self) -> RowSource:
        """The rows in a dtype that formats have."""
        return numbers(self, self.dtype if self.dtype in VALUE_DTYPES else torch.float32)
