"""Runs of bfloat16 for products in float16: csrc/kernels/spmm_half_runs/kernel.h says what they
round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats.checks import check_buffer
from sparse_engine.formats.rows import RowSource
from sparse_engine.packings.cpu.runs import Runs

K_BLOCK = 256
"""Columns of a K-block: those of a panel of 64 tokens in float16 take 32 KiB of L1."""
# Exponents for which neither a power nor its inverse is Inf or a denormal.
SMALLEST, LARGEST = -126, 126


@dataclass(frozen=True, eq=False, repr=False)
class HalfRuns(Runs):
    """Runs, and a power of two for each row.

    Values stay bfloat16. Kernels multiply them with the power of their row and convert them to
    float16, which is exact for values down to 2^-22 of the row's largest.
    """

    name: ClassVar[str] = "half_runs"
    kind: ClassVar[str] = "half_runs"
    template: ClassVar[str] = "half_runs:{chunk}:{block}"
    buffer_names: ClassVar[tuple[str, ...]] = (*Runs.buffer_names, "powers")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16,)

    powers: Tensor
    """float32 [chunks x chunk + 1]: powers of two, which make the largest value of a row 32 to
    64."""

    @classmethod
    def _build(
        cls, source: RowSource, chunk: int | None = None, block: int | None = None
    ) -> dict[str, Any]:
        buffers = super()._build(source, chunk, block or K_BLOCK)
        return {**buffers, "powers": _powers(source, buffers["chunk"])}

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        super().validate()
        expected = _powers(self, self.chunk)
        check_buffer("runs powers", self.powers, (torch.float32,), expected.shape)
        if not torch.equal(self.powers, expected):
            raise InvalidFileError("runs powers: do not fit the largest values of the rows")


def _powers(source: RowSource, chunk: int) -> Tensor:
    """The powers of all rows of whole chunks, and of one more row; 1 for rows without a number."""
    largest = torch.zeros(-(-source.shape[0] // chunk) * chunk + 1)
    for begin, rows in source.row_chunks():
        magnitudes = torch.where(rows.values.isfinite(), rows.values.abs(), 0).float()
        largest.scatter_reduce_(0, rows.row_ids().long() + begin, magnitudes, "amax")
    _, exponents = torch.frexp(largest)  # largest is below 2^exponent
    powers = torch.exp2((6 - exponents).clamp(SMALLEST, LARGEST).float())
    return torch.where(largest > 0, powers, 1.0)
