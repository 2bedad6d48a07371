"""Ell: an unstructured weight as the GPU kernel reads it; kernels/linear_ell.py has the layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.formats.base import check_elements
from sparse_engine.formats.checks import check_buffer, check_count, check_range, check_shape
from sparse_engine.formats.rows import Rows, RowSource, running, spans
from sparse_engine.packings.cuda.base import FEW_TOKENS, GPU_DTYPES, CudaPacking

LANES, WIDTH, EMPTY = 128, 255, 255
NO_ROW = {torch.uint16: 2**16 - 1, torch.int32: 2**31 - 1}


@dataclass(frozen=True, eq=False, repr=False)
class Ell(CudaPacking):
    """Panels of 255 columns, a byte of place a value; groups of 128 rows of about equal length.

    A row needs two bytes a panel (four from 65536 rows on), a group twelve, an empty slot as much
    as a full one. Few slots are empty, since rows are sorted by length within each panel.
    """

    name: ClassVar[str] = "ell"
    kind: ClassVar[str] = "ell"
    template: ClassVar[str] = "ell"
    buffer_names: ClassVar[tuple[str, ...]] = ("values", "columns", "groups", "rows", "scales")

    max_tokens: ClassVar[int] = FEW_TOKENS

    columns: Tensor
    """uint8 [slots, 128], 255 where a slot is empty."""
    groups: Tensor
    """int32 [groups, 3]: panel, first slot, slots; most slots first."""
    rows: Tensor
    """uint16 or int32 [groups, 128]: the row of each lane, the largest number for none."""

    def launch(self, x: Tensor, **epilogue: Any) -> Tensor:
        """See `CudaPacking.launch`."""
        from sparse_engine import kernels

        return kernels.linear_ell(
            x, self.values, self.columns, self.groups, self.rows, self.shape[0], **epilogue
        )

    def kernel_name(self, tokens: int) -> str:
        """The kernel for few tokens, or the one that expands the weight."""
        few = tokens <= self.max_tokens
        return "linear_ell_kernel" if few else "expand_ell_kernel, dense"

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The dense weight [out, in]."""
        from sparse_engine import kernels

        buffers = self.values, self.columns, self.groups, self.rows
        return kernels.expand_ell(*buffers, self.shape, dtype, self._expand_scales())

    @classmethod
    def _build(cls, source: RowSource) -> dict[str, Any]:
        (out_features, in_features), device = source.shape, source.device
        panels, stacks = -(-in_features // WIDTH), -(-out_features // LANES)
        kind = torch.uint16 if out_features <= NO_ROW[torch.uint16] else torch.int32
        lengths = torch.zeros(panels, stacks, dtype=torch.int64, device=device)
        # In each panel the rows of each lane, and the lane of each row.
        rows = torch.full((panels, stacks * LANES), NO_ROW[kind], dtype=torch.int32, device=device)
        lanes = torch.zeros(panels, out_features, dtype=torch.int32, device=device)
        lane = torch.arange(out_features, dtype=torch.int32, device=device)
        for panel, counts in enumerate(_panel_counts(source, panels)):
            order = counts.argsort(descending=True, stable=True)
            rows[panel, :out_features] = order.int()
            lanes[panel, order] = lane
            lengths[panel] = counts[order][::LANES]
        slots = int(lengths.sum())
        check_count("ell: slots", slots * LANES)
        starts = (lengths.view(-1).cumsum(0) - lengths.view(-1)).view(panels, stacks)

        values = torch.zeros(slots * LANES, dtype=source.dtype, device=device)
        columns = torch.full((slots * LANES,), EMPTY, dtype=torch.uint8, device=device)
        for begin, part in source.row_chunks():
            row, place = part.row_ids(), part.columns.long() // WIDTH
            rank = _ranks(row * panels + place)
            at = lanes[place, row + begin].long()
            target = (starts[place, at // LANES] + rank) * LANES + at % LANES
            values[target] = part.values
            columns[target] = (part.columns % WIDTH).to(torch.uint8)

        number = torch.arange(panels, device=device)[:, None].expand(panels, stacks)
        groups = torch.stack([number, starts, lengths], 2).view(panels * stacks, 3)
        heaviest = groups[:, 2].argsort(descending=True, stable=True)
        return {
            "values": values.view(slots, LANES),
            "columns": columns.view(slots, LANES),
            "groups": groups[heaviest].int().contiguous(),
            "rows": rows.view(panels * stacks, LANES)[heaviest].to(kind).contiguous(),
            "scales": torch.zeros(0, device=device),
        }

    @cached_property
    def lanes(self) -> Tensor:
        """Where each row of each panel is, 128 x its group + its lane, int64 [panels, out]."""
        out_features = self.shape[0]
        rows = self.rows.int().long()
        group, lane = (rows < out_features).nonzero().unbind(1)
        panel = self.groups[:, 0].long()[group]
        lanes = torch.zeros(-(-self.shape[1] // WIDTH), out_features, dtype=torch.int64)
        lanes = lanes.to(self.device)
        lanes[panel, rows[group, lane]] = group * LANES + lane
        return lanes

    def row_costs(self) -> Tensor:
        """Slots of each row's groups."""
        return self.groups[:, 2].long()[self.lanes // LANES].sum(0)

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1; of int8 the integers."""
        lanes = self.lanes[:, begin:end].T.reshape(-1)  # panel after panel, row after row
        group = lanes // LANES
        panel, first, slots = self.groups.long()[group].unbind(1)
        slot = spans(first, slots)
        at = (lanes % LANES).repeat_interleave(slots, output_size=len(slot))
        column = self.columns[slot, at]
        start = (panel * WIDTH).int().repeat_interleave(slots, output_size=len(slot))
        values = self.values[slot, at]
        counts = slots.view(end - begin, -1).sum(1)
        rows = Rows(running(counts), start + column, values)
        return rows.keep((column != EMPTY) & (values != 0)).sorted()

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
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
        self._validate_scales()
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
        if bool((self.values[self.columns == EMPTY] != 0).any()):
            raise InvalidFileError("ell values: an empty slot is not zero")
        check_elements(self)


def _panel_counts(source: RowSource, panels: int) -> Tensor:
    """Non-zeros of each row in each panel, uint8 [panels, out]: there are at most 255."""
    counts = torch.zeros(panels, source.shape[0], dtype=torch.uint8, device=source.device)
    for begin, part in source.row_chunks():
        flat = (part.columns.long() // WIDTH).mul_(source.shape[0])
        flat += part.row_ids().add_(begin)
        counts.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=torch.uint8))
    return counts


def _ranks(keys: Tensor) -> Tensor:
    """How many equal keys come before each, where equal ones are side by side."""
    at = torch.arange(len(keys), device=keys.device)
    fresh = torch.ones_like(keys, dtype=torch.bool)
    fresh[1:] = keys[1:] != keys[:-1]
    return at - torch.where(fresh, at, 0).cummax(0).values
