"""Values of another dtype: how a weight is cast, or quantised to int8, while its rows are read."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.checks import check_buffer
from sparse_engine.formats.rows import Rows, RowSource

MAX_FLOAT16 = 65504


class Numbers(RowSource):
    """A weight whose values are read in `dtype`.

    int8 is symmetric with one scale a row: W[r, c] = integer x scales[r], and
    scales[r] = max |W[r]| / 127. Values that round to zero are dropped. A weight that is int8
    already keeps its integers and scales.

    Attributes:
        weight: The weight that is read.
        scales: float32 [out] for int8, else [0]; complete once all rows were read.
        sums: int32 [out] for int8, else [0]: the sum of a row's integers; complete with `scales`.
    """

    def __init__(self, weight: RowSource, dtype: torch.dtype) -> None:
        self.shape = weight.shape
        self.weight, self._dtype = weight, dtype
        count = weight.shape[0] if dtype == torch.int8 else 0
        self.scales = torch.zeros(count, dtype=torch.float32, device=weight.device)
        self.sums = torch.zeros(count, dtype=torch.int32, device=weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values that are read."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self.weight.device

    def row_costs(self) -> Tensor:
        """Elements that are read for each row."""
        return self.weight.row_costs()

    @property
    def unit(self) -> int:
        """Rows that are best read together."""
        return self.weight.unit

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1; raises UsageError for what dtype cannot hold."""
        rows = self.weight.read_rows(begin, end)
        if self._dtype == torch.int8:
            values = self.integers(rows.values, rows.row_ids(), begin, end)
        elif rows.values.dtype == torch.int8:
            scales = self.weight.scales[begin:end]  # type: ignore[attr-defined]
            values = (rows.values.float() * scales[rows.row_ids()]).to(self._dtype)
        else:
            values = rows.values.to(self._dtype)
            if self._dtype == torch.float16 and not torch.equal(
                values.isinf(), rows.values.isinf()
            ):
                raise UsageError(
                    f"float16 holds numbers up to {MAX_FLOAT16}, and this weight has larger ones"
                )
        return Rows(rows.pointers, rows.columns, values).keep(values != 0)

    def integers(self, values: Tensor, row: Tensor, begin: int, end: int) -> Tensor:
        """The values of rows begin to end - 1 as int8; keeps the scales and sums of the rows.

        Args:
            values: [n], all that are not zero among them.
            row: int64 [n], the row of each value, counted from begin.
            begin: The first row.
            end: The row after the last.
        """
        if values.dtype == torch.int8:
            self.scales[begin:end] = self.weight.scales[begin:end]  # type: ignore[attr-defined]
            integers = values
        else:
            integers, scales = quantise(values, row, end - begin)
            self.scales[begin:end] = scales
        sums = torch.zeros(end - begin, dtype=torch.int32, device=self.device)
        self.sums[begin:end] = sums.index_add_(0, row, integers.int())
        return integers


def quantise(values: Tensor, row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Integers in -127..127 and one scale a row, max |row| / 127.

    Args:
        values: [n], float32 or bfloat16.
        row: int64 [n], the row of each value.
        rows: Number of rows.

    Returns:
        int8 [n] and float32 [rows].

    Raises:
        UsageError: A value is Inf or NaN.
    """
    values = values.float()
    if not bool(torch.isfinite(values).all()):
        raise UsageError("int8 cannot hold the Inf or NaN in this weight")
    scales = torch.zeros(rows, device=values.device)
    scales = scales.scatter_reduce_(0, row, values.abs(), "amax") / 127
    divisors = torch.where(scales > 0, scales, 1.0)
    return (values / divisors[row]).round_().clamp_(-127, 127).to(torch.int8), scales


def numbers(weight: RowSource, dtype: torch.dtype) -> RowSource:
    """`weight` with its values in `dtype`: itself, or as `Numbers`."""
    same = weight.dtype == dtype and dtype != torch.int8
    return weight if same else Numbers(weight, dtype)


def check_scales(name: str, scales: Tensor, count: int, device: torch.device) -> None:
    """Raise InvalidFileError unless there are `count` finite scales, none of them negative."""
    check_buffer(f"{name} scales", scales, (torch.float32,), (count,), device)
    if not bool(torch.isfinite(scales).all()):
        raise InvalidFileError(f"{name} scales: must be finite")
    if bool((scales < 0).any()):
        raise InvalidFileError(f"{name} scales: must not be negative")


def check_symmetric(values: Tensor) -> None:
    """Raise InvalidFileError unless all int8 values lie in -127..127."""
    if bool((values == -128).any()):
        raise InvalidFileError("int8 values: expected -127..127, got -128")
