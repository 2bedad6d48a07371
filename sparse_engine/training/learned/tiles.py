"""Groups of one layer: elements, blocks, rows and columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_engine.pruning.granularity import Tiles
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.groups import Values, WeightGroups


class LayerTiles(WeightGroups):
    """The tiles of a layer, row by row of its grid.

    Args:
        layer: the layer.
        tiles: their height and width.
        device: of the parameter.
    """

    def __init__(self, layer: TrainedLayer, tiles: Tiles, device: torch.device) -> None:
        self.name = layer.name
        self.least = 1
        self.layers = (layer,)
        self._tiles = tiles
        if tiles.size(*layer.shape) == (1, 1):  # no memory for a number of each weight
            self.sizes = torch.ones(1, dtype=torch.int64, device=device).expand(
                layer.shape[0] * layer.shape[1]
            )
        else:
            self.sizes = tiles.group_sizes(*layer.shape).flatten().to(device)
        self.count = len(self.sizes)

    def sums(self, values: Values) -> Tensor:
        return self._tiles.group_sums(values(self.layers[0])).flatten()

    def factors(self, of_groups: Tensor) -> Iterator[tuple[TrainedLayer, Tensor]]:
        layer = self.layers[0]
        rows, _ = self._tiles.size(*layer.shape)
        grid = of_groups.view(-(-layer.shape[0] // rows), -1)
        yield layer, self._tiles.spread(grid, *layer.shape)
