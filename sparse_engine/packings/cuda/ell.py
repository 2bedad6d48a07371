"""Ell: an unstructured weight as the GPU kernel reads it; kernels/linear_ell.py says how it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats import Format
from sparse_engine.formats.checks import check_buffer, check_count, check_range, check_shape
from sparse_engine.packings.cuda.values import GPU_DTYPES, as_numbers, check_scales, scaled

LANES, WIDTH, EMPTY = 128, 255, 255
NO_ROW = {torch.uint16: 2**16 - 1, torch.int32: 2**31 - 1}


@dataclass(frozen=True, eq=False, repr=False)
class Ell(Format):
    """Panels of 255 columns, a byte of place a value; groups of 128 rows of about equal length.

    Rows take two bytes a panel (four from 65536 rows on), a group twelve, an empty slot as much as a full
    one; there are few of those, since rows are sorted by length within each panel.
    """

    name: ClassVar[str] = "ell"
    kind: ClassVar[str] = "ell"
    template: ClassVar[str] = "ell"
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "columns", "groups", "rows", "scales")

    columns: Tensor
    """uint8 [slots, 128], 255 where a slot is empty."""
    groups: Tensor
    """int32 [groups, 3]: panel, first slot, slots; most slots first."""
    rows: Tensor
    """uint16 or int32 [groups, 128]: the row in each lane, or the largest number where there is none."""
    scales: Tensor
    """float32 [out] beside int8 values, else [0]."""

    @classmethod
    def from_dense(cls, weight: Tensor, dtype: torch.dtype | None = None) -> Self:
        """Pack a weight [out, in], float32 or bfloat16, with values of `dtype` or its own."""
        dtype = dtype or weight.dtype
        numbers, scales = as_numbers(weight, dtype)
        out_features, in_features = weight.shape
        device = weight.device
        panels, stacks = -(-in_features // WIDTH), -(-out_features // LANES)
        kept = pad(numbers != 0, (0, panels * WIDTH - in_features))
        counts = kept.view(out_features, panels, WIDTH).sum(2).T  # [panels, out]
        order = counts.argsort(dim=1, descending=True, stable=True)  # [panels, out]
        extra = (0, stacks * LANES - out_features)
        lengths = pad(counts.gather(1, order), extra).view(panels, stacks, LANES)[:, :, 0]
        slots = int(lengths.sum())
        check_count("ell: slots", slots * LANES)
        starts = (lengths.reshape(-1).cumsum(0) - lengths.reshape(-1)).view(panels, stacks)

        values = torch.zeros(slots * LANES, dtype=dtype, device=device)
        columns = torch.full((slots * LANES,), EMPTY, dtype=torch.uint8, device=device)
        for panel in range(panels):  # one at a time, so that little memory is needed beside
            at = panel * WIDTH
            used = kept[:, at : at + WIDTH]
            row, place = used.nonzero().unbind(1)
            rank = used.cumsum(1)[row, place] - 1
            lane = torch.empty_like(order[panel])
            lane[order[panel]] = torch.arange(out_features, device=device)
            slot = starts[panel][lane[row] // LANES] + rank
            target = slot * LANES + lane[row] % LANES
            values[target] = numbers[row, at + place].to(dtype)
            columns[target] = place.to(torch.uint8)

        kind = torch.uint16 if out_features <= NO_ROW[torch.uint16] else torch.int32
        rows = pad(order, extra, value=NO_ROW[kind]).reshape(panels * stacks, LANES)
        number = torch.arange(panels, device=device)[:, None].expand(panels, stacks)
        groups = torch.stack([number, starts, lengths], 2).view(panels * stacks, 3)
        heaviest = groups[:, 2].argsort(descending=True, stable=True)
        return cls(
            shape=(out_features, in_features),
            values=values.view(slots, LANES),
            columns=columns.view(slots, LANES),
            groups=groups[heaviest].int().contiguous(),
            rows=rows[heaviest].to(kind).contiguous(),
            scales=scales,
        )

    def to_dense(self) -> Tensor:
        """The matrix [out, in]."""
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        row, column, full = self._places()
        dense[row[full], column[full]] = self.values[full]
        return scaled(dense, self.scales)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and fullness of each slot, [slots, 128]."""
        ordered = self.groups[:, 1].long().argsort(stable=True)
        ordered = ordered[self.groups[ordered, 2] > 0]
        group = ordered.repeat_interleave(self.groups[ordered, 2].long())  # [slots]
        column = self.groups[group, 0].long()[:, None] * WIDTH + self.columns
        return self.rows.int()[group].long(), column, self.columns != EMPTY

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe one matrix and kernels may read them."""
        check_shape(self.name, self.shape)
        out_features, in_features = self.shape
        device = self.values.device
        panels, stacks = -(-in_features // WIDTH), -(-out_features // LANES)
        count = panels * stacks
        check_buffer("ell values", self.values, GPU_DTYPES, ("slots", LANES))
        slots = self.values.shape[0]
        check_buffer("ell columns", self.columns, (torch.uint8,), (slots, LANES), device)
        check_buffer("ell groups", self.groups, (torch.int32,), (count, 3), device)
        kind = torch.uint16 if out_features <= NO_ROW[torch.uint16] else torch.int32
        check_buffer("ell rows", self.rows, (kind,), (count, LANES), device)
        check_scales("ell", self.values, self.scales, out_features)
        panel, start, length = self.groups.cpu().long().unbind(1)
        if count:
            check_range("ell groups", self.groups[:, 0].contiguous(), panels)
        by_start = start.argsort(stable=True)
        by_start = by_start[length[by_start] > 0]
        ends = length[by_start].cumsum(0)
        if int(length.min() if count else 0) < 0 or not (
            torch.equal(start[by_start], ends - length[by_start])
            and (int(ends[-1]) if len(ends) else 0) == slots
        ):
            raise InvalidFileError("ell groups: do not hold every slot once")
        rows = self.rows.cpu().int().long()
        there = rows < out_features
        held = (panel[:, None] * max(out_features, 1) + rows)[there].sort().values
        if not torch.equal(held, torch.arange(panels * out_features)):
            raise InvalidFileError("ell rows: a panel does not hold every row once")
        self._validate_slots()

    def _validate_slots(self) -> None:
        row, column, full = self._places()
        if bool((row[full] >= self.shape[0]).any()) or bool((column[full] >= self.shape[1]).any()):
            raise InvalidFileError("ell columns: a value lies outside the matrix")
        if bool((self.values[~full] != 0).any()):
            raise InvalidFileError("ell values: an empty slot is not zero")
        keys = row[full] * max(self.shape[1], 1) + column[full]
        if len(keys.unique()) != len(keys):
            raise InvalidFileError("ell columns: an element is stored twice")
