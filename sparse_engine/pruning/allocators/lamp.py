"""LAMP: s_i / sum of all s_j >= s_i of the layer, with one threshold for all layers.

Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv:2010.07611.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting

MAX_SPARSITY = 0.98  # of one layer, unless the sparsity of the whole model is higher


class Lamp(Allocator):
    """Groups of all layers compete by their layer-adaptive scores.

    The best groups of every layer are kept in any case: a share of
    1 - max(MAX_SPARSITY, sparsity), and at least one.
    """

    name = "lamp"
    aliases = ("global",)

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        amounts = shares(dense.scores(), requested.sparsity)
        return {name: Setting(requested.granularity, amount) for name, amount in amounts.items()}


def shares(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    """The fraction of the groups of each layer to remove.

    Args:
        scores: by layer, the score of each group in the dense model.
        sparsity: fraction of all groups to remove, 0 <= sparsity < 1.
    """
    cap = max(MAX_SPARSITY, sparsity)
    guarded = []
    for layer_scores in scores.values():
        normalised = lamp(layer_scores)
        protected = max(normalised.numel() - int(cap * normalised.numel()), 1)
        normalised[normalised.topk(protected).indices] = torch.inf
        guarded.append(normalised)
    everything = torch.cat(guarded)
    removable = int(everything.isfinite().sum())
    drop = min(round(sparsity * everything.numel()), removable)
    removed = torch.zeros_like(everything, dtype=torch.bool)
    removed[everything.topk(drop, largest=False).indices] = True
    parts = removed.split([normalised.numel() for normalised in guarded])
    return {name: int(part.sum()) / part.numel() for name, part in zip(scores, parts, strict=True)}


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
