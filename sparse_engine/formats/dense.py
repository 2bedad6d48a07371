"""Dense: a dense weight as a source of rows, which formats and packings are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparse_engine.formats.checks import check_weight
from sparse_engine.formats.rows import Rows, RowSource, Tiles, positive_zeros, running


@dataclass(frozen=True, eq=False)
class Dense(RowSource):
    """A dense weight [out, in]."""

    shape: tuple[int, int]
    values: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Without a copy; raises UsageError for a weight that no format can hold."""
        weight = check_weight(weight)
        return cls((weight.shape[0], weight.shape[1]), weight)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self.values.device

    def row_costs(self) -> Tensor:
        """Elements of a row."""
        return torch.full((self.shape[0],), self.shape[1], device=self.device)

    def read_rows(self, begin: int, end: int) -> Rows:
        """The non-zeros of rows begin to end - 1."""
        weight = self.values[begin:end]
        kept = weight != 0
        columns = torch.arange(self.shape[1], dtype=torch.int32, device=self.device)
        return Rows(running(kept.sum(1)), columns.expand(weight.shape)[kept], weight[kept])

    def read_strip(self, begin: int, end: int, width: int) -> Tensor:
        """Rows begin to end - 1, padded with zeros to `width` columns."""
        return positive_zeros(pad(self.values[begin:end], (0, width - self.shape[1])))

    def read_tiles(self, begin: int, end: int, height: int, width: int) -> Tiles:
        """Tiles of rows begin to end - 1 that hold a non-zero."""
        tiles = tiled(self.values[begin:end], height, width)
        occupied = occupied_tiles(tiles)
        columns = torch.arange(occupied.shape[1], dtype=torch.int32, device=self.device)
        return Tiles(
            running(occupied.sum(1)),
            columns.expand(occupied.shape)[occupied],
            positive_zeros(tiles.permute(0, 2, 1, 3)[occupied]).contiguous(),
        )


def tiled(weight: Tensor, height: int, width: int) -> Tensor:
    """[out, in] -> [rows of tiles, height, columns of tiles, width], padded with zeros."""
    out_features, in_features = weight.shape
    grid = (-(-out_features // height), -(-in_features // width))
    extra = (0, grid[1] * width - in_features, 0, grid[0] * height - out_features)
    padded = pad(weight, extra) if any(extra) else weight
    return padded.reshape(grid[0], height, grid[1], width)


def occupied_tiles(tiles: Tensor) -> Tensor:
    """Which tiles of `tiled` hold a non-zero, bool [rows of tiles, columns of tiles]."""
    return (tiles != 0).any(dim=3).any(dim=1)
