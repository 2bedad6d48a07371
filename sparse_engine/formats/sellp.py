"""SELL-P: slices of 16 rows whose columns are picked from a window; csrc/layouts/sellp.h draws it.

W[rows[16 g + i], offsets[s] + picks[s, i]] = values[s, i] for the steps s of slice g, i in 0..15.
Slices of sorted rows are SELL-C-sigma, arXiv:1307.6209.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

# Importing torch first matters: the extension then binds to torch's OpenMP.
from sparse_engine import _core
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.base import Format, check_elements
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_count,
    check_pointers,
    check_range,
    check_shape,
)
from sparse_engine.formats.compressed import to_pointers
from sparse_engine.formats.csr import CSR
from sparse_engine.formats.rows import Rows, RowSource, joined, running, spans

LANES, WINDOW = 16, 32
MAX_INPUTS = 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class SellP(Format):
    """For one to four tokens: 16 rows at a time, one non-zero of each row a step.

    All non-zeros of a step lie in a window of 32 columns; rows without one there store a zero. One
    byte of index a stored value.

    >>> SellP.from_dense(weight).stored / CSR.from_dense(weight).stored  # the price of the windows
    """

    name: ClassVar[str] = "sellp"
    kind: ClassVar[str] = "sellp"
    """The name of the layout that the kernels read."""
    template: ClassVar[str] = "sellp"
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "picks", "offsets", "starts", "rows")
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = VALUE_DTYPES

    picks: Tensor
    """uint8 [steps, 16]: column inside the window."""
    offsets: Tensor
    """uint16 [steps]: first column of the window."""
    starts: Tensor
    """int32 [slices + 1]: first step of each slice."""
    rows: Tensor
    """int32 [16 slices]: row of each lane, `out` for none."""

    @classmethod
    def from_format(cls, weight: RowSource) -> Self:
        """Store a weight with at most 65536 inputs."""
        return cls(weight.shape, **sellp_buffers(weight))

    @classmethod
    def from_dense(cls, weight: Tensor, *args: Any, **params: Any) -> Self:
        """As `Format.from_dense`; the dense weight is searched for non-zeros once."""
        return cls.from_format(CSR.from_dense(weight))

    @cached_property
    def lanes(self) -> Tensor:
        """Lane of each row, 16 x its slice + its place in there, int64 [out]."""
        rows = self.rows.long()
        used = (rows < self.shape[0]).nonzero().view(-1)
        lanes = torch.zeros(self.shape[0], dtype=torch.int64, device=self.device)
        lanes[rows[used]] = used
        return lanes

    def row_costs(self) -> Tensor:
        """Steps of each row's slice."""
        return self.starts.diff().long()[self.lanes // LANES]

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        lanes = self.lanes[begin:end]
        starts = self.starts.long()
        first = starts[lanes // LANES]
        counts = starts[lanes // LANES + 1] - first
        steps = spans(first, counts)
        at = steps * LANES + (lanes % LANES).repeat_interleave(counts, output_size=len(steps))
        values = self.values.view(-1)[at]
        columns = self.offsets.int()[steps] + self.picks.view(-1)[at]
        rows = Rows(running(counts), columns, values)
        return rows.keep(values != 0).sorted()

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        out_features, in_features = self.shape
        if in_features > MAX_INPUTS:
            raise InvalidFileError(f"sellp: at most {MAX_INPUTS} inputs, got {in_features}")
        slices = -(-out_features // LANES)
        check_buffer("sellp values", self.values, self.value_dtypes, ("steps", LANES))
        steps, device = self.values.shape[0], self.values.device
        check_buffer("sellp picks", self.picks, (torch.uint8,), (steps, LANES), device)
        check_buffer("sellp offsets", self.offsets, (torch.uint16,), (steps,), device)
        check_buffer("sellp starts", self.starts, (torch.int32,), (slices + 1,), device)
        check_buffer("sellp rows", self.rows, (torch.int32,), (LANES * slices,), device)
        check_pointers("sellp starts", self.starts, steps)
        check_range("sellp picks", self.picks.int(), WINDOW)
        check_range("sellp offsets", self.offsets.int(), max(in_features, 1))
        check_range("sellp rows", self.rows, out_features + 1)
        wanted = torch.arange(LANES * slices, dtype=torch.int32).clamp(max=out_features)
        if not torch.equal(self.rows.sort().values.cpu(), wanted):
            raise InvalidFileError("sellp rows: each row must stand once")
        check_elements(self)


def sellp_buffers(weight: RowSource) -> dict[str, Tensor]:
    """Buffers of SELL-P for a weight with values of 1, 2 or 4 bytes; raises UsageError.

    The pattern is laid out first, then the values are read, so that the two are never held at once.
    """
    out_features, in_features = weight.shape
    if in_features > MAX_INPUTS:
        raise UsageError(f"sellp: at most {MAX_INPUTS} inputs, got {in_features}: use csr")
    columns, counts = [], []
    for _, rows in weight.row_chunks():
        columns.append(rows.columns.cpu())
        counts.append(rows.pointers.diff().cpu())
    check_count("sellp: non-zeros", sum(map(len, columns)))
    packed = _core.sellp_pattern(
        pointers=to_pointers(joined(counts, torch.zeros(0, dtype=torch.int64))).numpy(),
        columns=joined(columns, torch.zeros(0, dtype=torch.int32)).numpy(),
        out=out_features,
        in_features=in_features,
    )
    buffers = {name: torch.from_numpy(array) for name, array in packed.items()}
    steps = len(buffers["offsets"])
    values = torch.zeros(steps, LANES, dtype=weight.dtype)
    lanes = SellP((out_features, in_features), values, **buffers).lanes.int().numpy()
    raw = {1: torch.int8, 2: torch.int16, 4: torch.int32}[values.element_size()]
    for begin, rows in weight.row_chunks():
        _core.fill_sellp(
            pointers=rows.pointers.int().cpu().numpy(),
            columns=rows.columns.cpu().numpy(),
            values=rows.values.cpu().view(raw).numpy(),
            in_features=in_features,
            first=begin,
            lanes=lanes,
            offsets=packed["offsets"],
            starts=packed["starts"],
            to=values.view(raw).numpy(),
        )
    buffers["picks"] = buffers["picks"].view(-1, LANES)
    return {name: t.to(weight.device) for name, t in {"values": values, **buffers}.items()}
