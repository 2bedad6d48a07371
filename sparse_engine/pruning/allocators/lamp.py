"""LAMP: s_i / sum of all s_j >= s_i of the layer, with one threshold for all layers.

Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv:2010.07611.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting, settings
from sparse_engine.pruning.allocators.bounds import count_lowest, guarded


class Lamp(Allocator):
    """Groups of all layers compete by their layer-adaptive scores."""

    name = "lamp"
    aliases = ("global",)

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        scores = dense.scores()
        layers = [layer for layer in dense.layers if layer.name in scores]
        normalised = [lamp(scores[layer.name]) for layer in layers]
        bounds = self.bounds(layers, requested)
        removed = count_lowest(normalised, bounds)
        return settings(layers, requested, removed, guarded(normalised, bounds, removed))


def lamp(scores: Tensor) -> Tensor:
    """Layer-adaptive scores of the groups of one layer.

    Args:
        scores: any shape, not negative.

    Returns:
        [number of groups], in the order of the flattened scores; that of the best group is 1.
    """
    ordered = scores.flatten().double().sort(descending=True)
    share = ordered.values / ordered.values.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(share).scatter_(0, ordered.indices, share).to(scores.dtype)
