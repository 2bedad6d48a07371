"""PackedNM: N:M for the GPU kernel: positions of 1, 2 or 4 bits, rows padded to whole words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import NM
from sparse_engine.formats.base import check_elements
from sparse_engine.formats.bits import pack_numbers, unpack_numbers
from sparse_engine.formats.checks import check_buffer, check_shape
from sparse_engine.formats.rows import Rows, RowSource, running
from sparse_engine.packings.cuda.base import FEW_TOKENS, GPU_DTYPES, CudaPacking

# Bits of a position by the size of a group; and values that a row is padded to a multiple of.
BITS = {2: 1, 4: 2, 8: 4, 16: 4}
STEP = 16


@dataclass(frozen=True, eq=False, repr=False)
class PackedNM(CudaPacking):
    """`keep` values in every group of `of` columns, rows in multiples of 16 values."""

    name: ClassVar[str] = "packed_nm"
    kind: ClassVar[str] = "packed_nm"
    template: ClassVar[str] = "packed_nm:{keep}:{of}"
    param_names: ClassVar[tuple[str, ...]] = ("keep", "of")
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "positions", "scales")

    max_tokens: ClassVar[int] = FEW_TOKENS

    positions: Tensor
    """uint8 [out, values of a row x bits / 8], the first of a byte in the lowest bits."""
    keep: int
    of: int

    def launch(self, x: Tensor, **epilogue: Any) -> Tensor:
        """See `CudaPacking.launch`."""
        from sparse_engine import kernels

        return kernels.linear_nm(x, self.values, self.positions, self.keep, self.of, **epilogue)

    def kernel_name(self, tokens: int) -> str:
        """The kernel for few tokens, or the one that expands the weight."""
        few = tokens <= self.max_tokens
        return "linear_nm_kernel" if few else "expand_nm_kernel, dense"

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The dense weight [out, in]."""
        from sparse_engine import kernels

        pattern = self.values, self.positions, self.keep, self.of
        return kernels.expand_nm(*pattern, self.shape[1], dtype, self._expand_scales())

    @classmethod
    def from_format(
        cls, weight: RowSource, dtype: torch.dtype | None = None, keep: int = 0, of: int = 0
    ) -> Self:
        """As `Packing.from_format`; keep and of are by default those of the weight."""
        if isinstance(weight, NM | PackedNM):
            keep, of = keep or weight.keep, of or weight.of
        return super().from_format(weight, dtype, keep=keep, of=of)

    @classmethod
    def _build(cls, source: RowSource, keep: int = 0, of: int = 0) -> dict[str, Any]:
        problem = cls.params_problem({"keep": keep, "of": of})
        if problem:
            raise UsageError(problem)
        if not isinstance(source, NM) or (source.keep, source.of) != (keep, of):
            source = NM.from_format(source, keep, of)
        rows, count = source.values.shape
        width = count + -count % STEP
        size = (rows, width * BITS[of] // 8)
        positions = torch.zeros(size, dtype=torch.uint8, device=source.device)
        for begin, end in source.ranges():
            numbers = source.unpacked_positions(begin, end).reshape(end - begin, count)
            positions[begin:end] = pack_numbers(pad(numbers, (0, width - count)), BITS[of])
        return {
            "values": pad(source.values, (0, width - count)),
            "positions": positions,
            "scales": torch.zeros(0, device=source.device),
            "keep": keep,
            "of": of,
        }

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """Why no GPU kernel has such groups, or None."""
        keep, of = params["keep"], params["of"]
        if of in BITS and 1 <= keep <= of and keep & (keep - 1) == 0:
            return None
        return f"{keep}:{of}: GPU kernels have powers of two in groups of 2, 4, 8 or 16"

    def row_costs(self) -> Tensor:
        """Values of a row."""
        return torch.full((self.shape[0],), self.values.shape[1], device=self.device)

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1; of int8 the integers."""
        values = self.values[begin:end]
        places = unpack_numbers(self.positions[begin:end], BITS[self.of], values.shape[1])
        group = torch.arange(values.shape[1], dtype=torch.int32, device=self.device) // self.keep
        kept = values != 0
        columns = (group * self.of + places)[kept]
        return Rows(running(kept.sum(1)), columns, values[kept]).sorted()

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        rows, device = self.shape[0], self.values.device
        count = -(-self.shape[1] // self.of) * self.keep
        count += -count % STEP
        check_buffer("packed_nm values", self.values, GPU_DTYPES, (rows, count))
        size = (rows, count * BITS[self.of] // 8)
        check_buffer("packed_nm positions", self.positions, (torch.uint8,), size, device)
        self._validate_scales()
        for begin, end in self.ranges():
            places = unpack_numbers(self.positions[begin:end], BITS[self.of], count)
            if bool((places >= self.of).any()):
                raise InvalidFileError(f"packed_nm positions: must lie in 0..{self.of - 1}")
        check_elements(self)
