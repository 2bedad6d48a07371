"""PackedBSR: BSR as the GPU kernel reads it, with a work partition made beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import BSR
from sparse_engine.formats.checks import check_buffer, check_range, check_shape
from sparse_engine.formats.compressed import to_pointers
from sparse_engine.formats.rows import Rows, RowSource, Tiles
from sparse_engine.packings.cuda.base import GPU_DTYPES, NO_TRITON, CudaPacking

ROWS = (16, 32, 64, 128)
COLS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, eq=False, repr=False)
class PackedBSR(CudaPacking):
    """The buffers of BSR, values of any dtype, and a work partition (kernels/plan.py)."""

    name: ClassVar[str] = "blocks"
    kind: ClassVar[str] = "blocks"
    template: ClassVar[str] = "blocks:{rows}x{cols}"
    param_names: ClassVar[tuple[str, ...]] = ("rows", "cols", "most", "gated")
    buffer_names: ClassVar[tuple[str, ...]] = (
        "values", "indices", "pointers", "scales", "order", "items", "parts",
    )  # fmt: skip

    indices: Tensor
    pointers: Tensor
    order: Tensor
    """int32 [block rows of y], the heaviest first."""
    items: Tensor
    """int32 [items, 4]: block row, first block, one past the last, number of the part."""
    parts: Tensor
    """int32 [block rows], into how many items each is cut; [0] where none is."""
    most: int
    """Parts of the row that has most."""
    gated: int = 0
    """1 where the second half of the rows gates the first."""

    @classmethod
    def from_format(
        cls,
        weight: RowSource,
        dtype: torch.dtype | None = None,
        rows: int = 0,
        cols: int = 0,
        gated: bool = False,
    ) -> Self:
        """As `Packing.from_format`.

        Args:
            weight: A format, or another packing.
            dtype: Of the values; by default the weight's own.
            rows: Of a block, one of ROWS; by default those of a BSR weight.
            cols: Of a block, one of COLS; likewise.
            gated: Whether the second half of the rows gates the first.
        """
        if isinstance(weight, BSR | PackedBSR):
            rows, cols = rows or weight.rows, cols or weight.cols
        return super().from_format(weight, dtype, rows=rows, cols=cols, gated=gated)

    @classmethod
    def _build(
        cls, source: RowSource, rows: int = 0, cols: int = 0, gated: bool = False
    ) -> dict[str, Any]:
        try:
            from sparse_engine.kernels import plan_bsr
        except ImportError as error:
            raise UsageError(NO_TRITON) from error
        problem = cls.block_problem(rows, cols)
        if gated and source.shape[0] % (2 * rows):
            problem = f"gated: {source.shape[0]} rows are not two halves of rows of {rows}"
        if problem:
            raise UsageError(problem)
        matrix = BSR.from_format(source, rows, cols)
        plan = plan_bsr(matrix.pointers, rows * cols * matrix.values.element_size(), gated)
        empty = torch.zeros(0, 4, dtype=torch.int32, device=matrix.device)
        return {
            **matrix.tensors(),
            "scales": torch.zeros(0, device=matrix.device),
            "order": plan.order,
            "items": empty if plan.items is None else plan.items,
            "parts": empty[:, 0] if plan.parts is None else plan.parts,
            "most": plan.most,
            "gated": int(gated),
        }

    @classmethod
    def join(cls, pieces: Sequence[PackedBSR], gated: bool = False) -> Self:
        """One weight of the rows of several, one below the other; `gated`: of two, see from_dense.

        All have blocks of one size and dtype, and whole rows of blocks. `split` gives them back.
        """
        from sparse_engine.kernels import plan_bsr

        first = pieces[0]
        counts = torch.cat([piece.pointers.diff() for piece in pieces])
        pointers = to_pointers(counts)
        plan = plan_bsr(pointers, first.rows * first.cols * first.values.element_size(), gated)
        empty = torch.zeros(0, 4, dtype=torch.int32, device=first.device)
        return cls(
            shape=(sum(piece.shape[0] for piece in pieces), first.shape[1]),
            values=torch.cat([piece.values for piece in pieces]),
            indices=torch.cat([piece.indices for piece in pieces]),
            pointers=pointers,
            scales=torch.cat([piece.scales for piece in pieces]),
            order=plan.order,
            items=empty if plan.items is None else plan.items,
            parts=empty[:, 0] if plan.parts is None else plan.parts,
            most=plan.most,
            gated=int(gated),
        )

    def split(self, pieces: Sequence[PackedBSR]) -> list[PackedBSR]:
        """What it was joined from, with the values and indices of the whole for memory."""
        counts = [len(piece.values) for piece in pieces]
        shared = zip(self.values.split(counts), self.indices.split(counts), strict=True)
        return [
            replace(piece, values=values, indices=indices)
            for piece, (values, indices) in zip(pieces, shared, strict=True)
        ]

    def launch(self, x: Tensor, **epilogue: Any) -> Tensor:
        """See `CudaPacking.launch`; for any number of tokens."""
        from sparse_engine import kernels

        split = len(self.items) > 0
        items, parts = (self.items, self.parts) if split else (None, None)
        return kernels.linear_bsr(
            x,
            self.values,
            self.indices,
            self.pointers,
            out_features=self.shape[0],
            gated=bool(self.gated),
            plan=kernels.BsrPlan(self.order, items, parts, self.most),
            **epilogue,
        )

    def kernel_name(self, tokens: int) -> str:
        """Depends on the GPU, the blocks and the plan."""
        from sparse_engine import kernels

        return kernels.linear_bsr_name(self.values, tokens, self.shape[1], cut=len(self.items) > 0)

    @property
    def outputs(self) -> int:
        """Features of y: half the rows of a gated weight."""
        return self.shape[0] // 2 if self.gated else self.shape[0]

    @staticmethod
    def block_problem(rows: int, cols: int) -> str | None:
        """Why no GPU kernel has such blocks, or None."""
        if rows in ROWS and cols in COLS:
            return None
        return (
            f"blocks of {rows}x{cols}: GPU kernels have {', '.join(map(str, ROWS))} rows and "
            f"{', '.join(map(str, COLS))} columns"
        )

    @classmethod
    def params_problem(cls, params: Mapping[str, int]) -> str | None:
        """What is wrong with the parameters, in one line, or None."""
        if params["most"] < 1 or params["gated"] not in (0, 1):
            return f"blocks: most is {params['most']}, gated {params['gated']}"
        return cls.block_problem(params["rows"], params["cols"])

    @property
    def rows(self) -> int:
        """Output features in a block."""
        return self.values.shape[1]

    @property
    def cols(self) -> int:
        """Input features in a block."""
        return self.values.shape[2]

    def row_costs(self) -> Tensor:
        """Elements of each row that lie in blocks."""
        return self._matrix.row_costs()

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1; of int8 the integers."""
        return self._matrix.read_rows(begin, end)

    def read_tiles(self, begin: int, end: int, height: int, width: int) -> Tiles:
        """Tiles of rows begin to end - 1 that hold a non-zero; of int8 the integers."""
        return self._matrix.read_tiles(begin, end, height, width)

    @property
    def _matrix(self) -> BSR:
        """The buffers as a BSR, of any dtype."""
        return BSR(self.shape, self.values, self.indices, self.pointers)

    def validate(self) -> None:
        """Raise InvalidFileError unless the buffers describe a matrix that kernels may read."""
        check_shape(self.name, self.shape)
        device = self.values.device
        check_buffer("blocks values", self.values, GPU_DTYPES, ("blocks", "rows", "cols"))
        problem = self.params_problem(self.params())
        if problem:
            raise InvalidFileError(problem)
        self._validate_scales()
        # What BSR checks of its buffers, on values of a dtype that it has.
        BSR(self.shape, self.values.float(), self.indices, self.pointers).validate()
        ints, rows = (torch.int32,), len(self.pointers) - 1
        halves = 2 if self.gated else 1
        if self.shape[0] % (halves * self.rows) and self.gated:
            raise InvalidFileError("blocks: the rows are not two halves")
        check_buffer("blocks order", self.order, ints, (rows // halves,), device)
        if not torch.equal(self.order.sort().values.cpu(), torch.arange(rows // halves).int()):
            raise InvalidFileError("blocks order: is not every row of blocks once")
        check_buffer("blocks items", self.items, ints, ("items", 4), device)
        cut = rows if len(self.items) else 0
        check_buffer("blocks parts", self.parts, ints, (cut,), device)
        if cut:
            self._validate_items()

    def _validate_items(self) -> None:
        """Every row's blocks are cut into parts 0, 1, ... that follow one another."""
        row, begin, end, part = self.items.cpu().long().unbind(1)
        parts, pointers = self.parts.cpu().long(), self.pointers.cpu().long()
        check_range("blocks items", self.items[:, 0].contiguous(), len(parts))
        by_row = (row * (int(part.max()) + 1) + part).argsort()
        row, begin, end, part = (t[by_row] for t in (row, begin, end, part))
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = row[1:] != row[:-1]
        last = first.roll(-1)
        starts = torch.where(first, pointers[row], end.roll(1))
        numbers = torch.where(first, 0, part.roll(1) + 1)
        sound = (
            torch.equal(row.bincount(minlength=len(parts)), parts)
            and torch.equal(begin, starts)
            and torch.equal(part, numbers)
            and torch.equal(end[last], pointers[row[last] + 1])
            and bool((begin <= end).all())
            and int(parts.max()) == self.most
        )
        if not sound:
            raise InvalidFileError("blocks items: do not share out every row of blocks once")
