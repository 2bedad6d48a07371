"""SELL-P: slices of 16 rows whose columns are picked from a window; csrc/layouts/sellp.h draws it.

W[rows[16 g + i], offsets[s] + picks[s, i]] = values[s, i] for the steps s of slice g, i in 0..15.
Slices of sorted rows are SELL-C-sigma, arXiv:1307.6209.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

# Importing torch first matters: the extension then binds to torch's OpenMP.
from sparse_engine import _core
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.base import Format, positive_zeros
from sparse_engine.formats.checks import (
    VALUE_DTYPES,
    check_buffer,
    check_pointers,
    check_range,
    check_shape,
    check_weight,
)
from sparse_engine.formats.csr import CSR

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
    def from_dense(cls, weight: Tensor) -> Self:
        """Store a weight [out, in], float32 or bfloat16, with at most 65536 inputs."""
        pattern = CSR.from_dense(check_weight(weight))
        shape = (weight.shape[0], weight.shape[1])
        return cls(shape=shape, **pack_sellp(pattern, positive_zeros(pattern.values)))

    def to_dense(self) -> Tensor:
        """The matrix [out, in]."""
        row, column, stored = self._places()
        dense = torch.zeros(self.shape, dtype=self.values.dtype, device=self.device)
        dense[row[stored], column[stored]] = self.values[stored]
        return dense

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column of each stored value, int64 [steps, 16], and whether it is a non-zero."""
        slices = torch.arange(len(self.starts) - 1, device=self.device)
        of_step = slices.repeat_interleave(self.starts.diff().long())
        row = self.rows.long().view(-1, LANES)[of_step]
        column = self.offsets.long()[:, None] + self.picks.long()
        return row, column, self.values != 0

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
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
        row, column, stored = self._places()
        row, column = row[stored], column[stored]
        if bool((row >= out_features).any()) or bool((column >= in_features).any()):
            raise InvalidFileError("sellp: a value lies outside the matrix")
        keys = row * max(in_features, 1) + column
        if len(keys.unique()) != len(keys):
            raise InvalidFileError("sellp: an element is stored twice")


def pack_sellp(pattern: CSR, values: Tensor) -> dict[str, Tensor]:
    """Buffers of SELL-P for the places of `pattern`, with `values` [entries] of 1, 2 or 4 bytes."""
    if pattern.shape[1] > MAX_INPUTS:
        raise UsageError(f"sellp: at most {MAX_INPUTS} inputs, got {pattern.shape[1]}: use csr")
    raw = {1: torch.int8, 2: torch.int16, 4: torch.int32}[values.element_size()]
    packed = _core.pack_sellp(
        pointers=pattern.pointers.cpu().numpy(),
        columns=pattern.indices.cpu().numpy(),
        values=values.cpu().view(raw).numpy(),
        out=pattern.shape[0],
        in_features=pattern.shape[1],
    )
    buffers = {name: torch.from_numpy(array) for name, array in packed.items()}
    got = buffers["values"]
    buffers["values"] = (got.view(values.dtype) if len(got) else values.new_zeros(0)).view(
        -1, LANES
    )
    buffers["picks"] = buffers["picks"].view(-1, LANES)
    return {name: buffer.to(pattern.device) for name, buffer in buffers.items()}
