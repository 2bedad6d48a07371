"""Raw: the scores of a criterion as they are, with one threshold for all layers.

The scores of `taylor`, `snip` and `fisher` estimate how much the loss of the whole model grows, so
they mean the same in every layer; with `magnitude` it is global magnitude pruning.
"""

from __future__ import annotations

from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting, settings
from sparse_engine.pruning.allocators.bounds import count_lowest, guarded


class Raw(Allocator):
    """Groups of all layers compete by their scores."""

    name = "raw"

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        scores = dense.scores()
        layers = [layer for layer in dense.layers if layer.name in scores]
        bounds = self.bounds(layers, requested)
        compared = [scores[layer.name] for layer in layers]
        removed = count_lowest(compared, bounds)
        return settings(layers, requested, removed, guarded(compared, bounds, removed))
