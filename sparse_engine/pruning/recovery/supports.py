"""Rows of a weight by their support, in padded batches for small dense factorisations.

The support of a row is the set of its kept columns. Adjacent rows with the same support, such as
those of a tile, share one factorisation of the submatrix H_SS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.pruning.parallel import for_each

BATCH_ELEMENTS = 1 << 21  # of the submatrices of one batch (8 MB)


@dataclass(frozen=True)
class SupportBatch:
    """Several supports of similar size, padded to the same width, and the rows that have them.

    Attributes:
        rows: int64 [batch, rows], the rows of each support; the last one repeats as padding.
        columns: int64 [batch, width], the columns of each support.
        real: bool [batch, width], False at padding.
    """

    rows: Tensor
    columns: Tensor
    real: Tensor

    @property
    def width(self) -> int:
        """Number of columns of a support, with padding."""
        return self.columns.shape[1]

    def complement(self, in_features: int) -> SupportBatch:
        """The same rows with the columns outside of their supports."""
        inside = torch.zeros(len(self.rows), in_features, dtype=torch.bool, device=self.rows.device)
        inside.scatter_reduce_(1, self.columns, self.real, "amax")
        counts = in_features - inside.sum(1)
        columns = inside.byte().argsort(dim=1, stable=True)[:, : int(counts.max())]
        real = torch.arange(columns.shape[1], device=columns.device) < counts[:, None]
        return SupportBatch(self.rows, columns, real)

    def submatrices(self, matrix: Tensor, across: SupportBatch | None = None) -> Tensor:
        """The submatrix of each support; at padding the identity, or zero between two supports.

        Args:
            matrix: [in, in].
            across: supports of the columns, if they are not those of the rows.

        Returns:
            [batch, width, width of the columns].
        """
        right = across or self
        # One support at a time: several times faster than one gather of all.
        parts = torch.stack(
            [
                matrix.index_select(0, rows).index_select(1, columns)
                for rows, columns in zip(self.columns, right.columns, strict=True)
            ]
        )
        if not (self.real.all() and right.real.all()):
            parts *= self.real[:, :, None] & right.real[:, None, :]
            if across is None:
                parts.diagonal(dim1=1, dim2=2).add_(~self.real)
        return parts

    def read(self, weight: Tensor) -> Tensor:
        """The values of the rows on their supports, zero at padding.

        Args:
            weight: [out, in].

        Returns:
            [batch, width, rows].
        """
        values = weight[self.rows[:, None, :], self.columns[:, :, None]]
        return values if self.real.all() else values * self.real[:, :, None]

    def write(self, values: Tensor, weight: Tensor) -> None:
        """Write values [batch, width, rows] to their places in a weight [out, in]."""
        rows = self.rows[:, None, :].expand_as(values)[self.real]
        columns = self.columns[:, :, None].expand_as(values)[self.real]
        weight[rows, columns] = values[self.real]


def for_each_support(keep: Tensor, function: Callable[[SupportBatch], None], span: int = 1) -> None:
    """Call a function with all supports, in parallel, in batches of bounded size.

    Args:
        keep: bool [out, in], the supports of the rows; empty ones are left out.
        function: what to call. Different batches have different rows.
        span: number of columns of a tile. Tiles with a kept column are taken as a whole, with the
            other columns as padding: the columns of a support are tile after tile, each of `span`.
    """
    in_features = keep.shape[1]
    supports, rows_each = torch.unique_consecutive(keep, dim=0, return_counts=True)
    first_rows = rows_each.cumsum(0) - rows_each
    tiles = F.pad(supports, (0, -in_features % span)).view(len(supports), -1, span).any(2)
    counts = tiles.sum(1)

    def call(batch: Tensor) -> None:
        width = int(counts[batch].max())
        at = tiles[batch].byte().argsort(dim=1, descending=True, stable=True)[:, :width]
        columns = (at[:, :, None] * span + torch.arange(span, device=at.device)).flatten(1)
        inside = columns < in_features  # the last tile may be partial
        columns = columns.clamp(max=in_features - 1)
        real = supports[batch].gather(1, columns) & inside
        members = torch.arange(int(rows_each[batch].max()), device=at.device)
        rows = first_rows[batch, None] + members.minimum(rows_each[batch, None] - 1)
        function(SupportBatch(rows, columns, real))

    for_each(call, _batches(counts, span))


def _batches(counts: Tensor, span: int) -> Iterator[Tensor]:
    """Indices of supports, largest first, as many at a time as BATCH_ELEMENTS allows."""
    order = counts.argsort(descending=True)
    order = order[: int(counts.count_nonzero())]
    while len(order):
        size = max(BATCH_ELEMENTS // (span * int(counts[order[0]])) ** 2, 1)
        yield order[:size]
        order = order[size:]
