"""Which groups are kept: the best by their scores, and no fewer of a layer than its floor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_engine.pruning.allocators.bounds import MAX_SPARSITY
from sparse_engine.training.learned.groups import WeightGroups


class Choice:
    """Chooses groups, and guards layers from losing all of them.

    Args:
        groups: of all layers or sites.
        max_sparsity: the highest fraction of its groups that a layer loses; None for MAX_SPARSITY,
            or `sparsity` if that is higher. At least one group is always kept.
        sparsity: of the whole model, if the recipe gives it.

    Attributes:
        floors: the fewest groups that each layer keeps.
        guarded: the layers, by number, of which more groups would have been removed.
    """

    def __init__(
        self, groups: Sequence[WeightGroups], max_sparsity: float | None, sparsity: float = 0.0
    ) -> None:
        limit = max(MAX_SPARSITY, sparsity) if max_sparsity is None else max_sparsity
        self._groups = groups
        self.floors = [
            max(own.least, own.count - min(math.ceil(own.count * limit - 1e-9), own.count - 1))
            for own in groups
        ]
        self.guarded: set[int] = set()

    def best(self, scores: Sequence[Tensor], share: float, together: bool) -> list[Tensor]:
        """Remove a share of the groups, those of the lowest scores.

        Args:
            scores: [count] of each layer.
            share: of its groups that each layer loses; with `together`, of the weights in all
                groups.
            together: whether the groups of all layers compete.

        Returns:
            bool [count] of each layer, False where a group is removed.
        """
        if together:
            sizes = [own.sizes for own in self._groups]
            keeps = lowest_removed(scores, sizes, share)
            if all(int(keep.sum()) >= low for keep, low in zip(keeps, self.floors, strict=True)):
                return keeps
            kept = self.at_least(scores, keeps)
            # The best groups of the guarded layers are out of reach, and others go instead.
            saved = [
                own.masked_fill(keep, torch.inf) if i in self.guarded else own
                for i, (own, keep) in enumerate(zip(scores, kept, strict=True))
            ]
            return self.at_least(scores, lowest_removed(saved, sizes, share))
        keeps = [
            lowest_removed([own], [torch.ones_like(of.sizes)], share)[0]
            for own, of in zip(scores, self._groups, strict=True)
        ]
        return self.at_least(scores, keeps)

    def at_least(self, scores: Sequence[Tensor], keeps: Sequence[Tensor]) -> list[Tensor]:
        """The same choice, but for layers that would fall below their floor: they keep their best.

        Args:
            scores: [count] of each layer.
            keeps: bool [count] of each layer.
        """
        pairs = enumerate(zip(scores, keeps, strict=True))
        return [self.at_least_of(i, own, keep) for i, (own, keep) in pairs]

    def at_least_of(self, i: int, scores: Tensor, keep: Tensor) -> Tensor:
        """The same for the layer of number `i` alone."""
        if int(keep.sum()) >= self.floors[i]:
            return keep
        self.guarded.add(i)
        best = torch.zeros_like(keep)
        best[scores.topk(self.floors[i]).indices] = True
        return best

    def warnings(self, modifier: str) -> list[str]:
        """A sentence for each layer that was guarded."""
        return [
            f"guard: {modifier} keeps {self.floors[i]} of the {self._groups[i].count} groups of "
            f"{self._groups[i].name}, and would have kept fewer"
            for i in sorted(self.guarded)
        ]


def lowest_removed(scores: Sequence[Tensor], sizes: Sequence[Tensor], share: float) -> list[Tensor]:
    """Remove the groups of the lowest scores until a share of all weights is gone.

    The share is met as well as whole groups allow. Groups with a score of infinity are kept.

    Args:
        scores: [count] of each layer.
        sizes: of the groups, [count] of each layer.
        share: of the weights in all groups.

    Returns:
        bool [count] of each layer, False where a group is removed.
    """
    device = scores[0].device
    flat = torch.cat([own.to(device) for own in scores])
    first = int(sizes[0][0])
    if all(bool((own == first).all()) for own in sizes):
        lowest = flat.topk(round(share * len(flat)), largest=False).indices
    else:
        order = flat.argsort(stable=True)
        size = torch.cat([own.to(device) for own in sizes])[order].double()
        lowest = order[size.cumsum(0) - size / 2 <= share * size.sum()]
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[lowest] = False
    keep |= flat == torch.inf
    parts = keep.split([len(own) for own in scores])
    return [part.to(own.device) for part, own in zip(parts, scores, strict=True)]
