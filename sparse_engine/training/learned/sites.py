"""Groups of a site: heads, units and filters, which several layers compute and read.

While masks are learned they are applied to the columns that read a group, which removes it from the
function of the model. The rows that compute it stay, so that a removed group still has a gradient.
In the end they are zero too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.groups import Values, WeightGroups


@dataclass(frozen=True)
class Part:
    """The weights of one layer that belong to groups.

    Attributes:
        layer: the layer.
        rows: int64 [out], the group of each row that computes one; `count` for no group. None if no
            row counts.
        columns: int64 [in], the group of each column that reads one.
    """

    layer: TrainedLayer
    rows: Tensor | None
    columns: Tensor | None

    @property
    def shared(self) -> Tensor:
        """bool [out, in], whether row and column belong to the same group."""
        assert self.rows is not None
        assert self.columns is not None
        return self.rows[:, None] == self.columns[None, :]


class SiteGroups(WeightGroups):
    """The groups of a site.

    Args:
        name: of the site.
        count: how many groups there are.
        least: the fewest that are kept.
        parts: of all layers, with rows and columns.
        rows_too: whether the rows that compute groups count, or only the columns that read them.
    """

    def __init__(
        self, name: str, count: int, least: int, parts: Sequence[Part], rows_too: bool = False
    ) -> None:
        self.name, self.count, self.least = name, count, least
        self._all = tuple(parts)
        self._parts = self._all
        if not rows_too:
            self._parts = tuple(
                Part(part.layer, None, part.columns) for part in parts if part.columns is not None
            )
        self.layers = tuple(part.layer for part in self._parts)
        device = next(x for part in parts for x in (part.rows, part.columns) if x is not None)
        self.sizes = self.sums(lambda layer: device.new_ones(()).expand(layer.shape))

    @classmethod
    def of(
        cls,
        name: str,
        count: int,
        least: int,
        writers: Mapping[str, Tensor],
        readers: Mapping[str, Tensor],
        layers: Mapping[str, TrainedLayer],
        device: torch.device,
    ) -> Self:
        """The groups by layer, as a site has them, in which -1 stands for no group."""

        def numbered(groups: Tensor | None) -> Tensor | None:
            return None if groups is None else groups.where(groups >= 0, count).to(device)

        names = dict.fromkeys((*writers, *readers))
        parts = [
            Part(layers[name], numbered(writers.get(name)), numbered(readers.get(name)))
            for name in names
        ]
        return cls(name, count, least, parts)

    @property
    def whole(self) -> SiteGroups:
        return SiteGroups(self.name, self.count, self.least, self._all, rows_too=True)

    def sums(self, values: Values) -> Tensor:
        total: Tensor | None = None
        for part in self._parts:
            own = values(part.layer)
            if total is None:
                total = own.new_zeros(self.count + 1)
            if part.rows is not None:
                total.index_add_(0, part.rows, own.sum(1).to(total.device))
            if part.columns is not None:
                if part.rows is not None:  # a weight of the row has been counted
                    own = own.masked_fill(part.shared, 0)
                total.index_add_(0, part.columns, own.sum(0).to(total.device))
        assert total is not None
        return total[: self.count]

    def factors(self, of_groups: Tensor) -> Iterator[tuple[TrainedLayer, Tensor]]:
        padded = torch.cat([of_groups, torch.ones_like(of_groups[:1])])
        for part in self._parts:
            rows = None if part.rows is None else padded[part.rows][:, None]
            columns = None if part.columns is None else padded[part.columns][None, :]
            if rows is None:
                assert columns is not None
                yield part.layer, columns
            elif columns is None:
                yield part.layer, rows
            else:
                yield part.layer, torch.where(part.shared, rows, rows * columns)
