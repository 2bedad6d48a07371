"""How many groups each layer may lose, and the exact total of all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.errors import UsageError

MAX_SPARSITY = 0.98
"""Of one layer, unless a limit is given or the sparsity of the whole model is higher."""


def check_bounds(owner: str, sparsity: float, least: float, most: float | None) -> None:
    """Refuse floors and ceilings between which no allocation has the sparsity of the model.

    Args:
        owner: the allocator, for messages.
        sparsity: fraction of the groups of all layers to remove.
        least: the lowest sparsity of a layer.
        most: the highest; None for the default.

    Raises:
        UsageError: if a bound is no fraction, or the sparsity lies outside of both.
    """
    highest = 1.0 if most is None else most
    if not 0 <= least <= highest <= 1:
        raise UsageError(
            f"allocator {owner}: expected 0 <= min_sparsity <= max_sparsity <= 1, got {least} "
            f"and {most}"
        )
    if not least <= sparsity <= highest:
        name = "min_sparsity" if sparsity < least else "max_sparsity"
        raise UsageError(
            f"allocator {owner}: sparsity {sparsity} of the model is out of reach with "
            f"{name}={least if sparsity < least else highest} of every layer"
        )


@dataclass(frozen=True)
class Bounds:
    """The layers of a model as an allocator counts them; all tensors are int64 [layers].

    Attributes:
        groups: number of groups of each layer.
        least: how many of them are removed at least.
        most: how many of them are removed at most; at least one always remains.
        total: how many are removed from all layers together.
    """

    groups: Tensor
    least: Tensor
    most: Tensor
    total: int

    @classmethod
    def of(
        cls, groups: Sequence[int], sparsity: float, least: float = 0.0, most: float | None = None
    ) -> Bounds:
        """The bounds of layers with these numbers of groups.

        Floors and ceilings are rounded outward to whole groups, so the total lies within them. It
        is reduced only if it exceeds what can be removed while every layer keeps one group.

        Args:
            groups: of each layer.
            sparsity: fraction of all groups to remove, within the floor and the ceiling.
            least: the lowest sparsity of a layer.
            most: the highest; None for MAX_SPARSITY, which gives way if the total requires more.

        Raises:
            UsageError: if layers of few groups cannot lose enough below the ceiling.
        """
        counts = torch.tensor(groups, dtype=torch.int64)
        exact, guard = counts.double(), (counts - 1).clamp_min(0)
        total = min(round(sparsity * int(counts.sum())), int(guard.sum()))
        ceiling = max(MAX_SPARSITY, sparsity) if most is None else most
        # Products such as 0.98 * 1000 are whole numbers but for rounding.
        highest = (exact * ceiling - 1e-9).ceil().long().minimum(guard)
        if most is None and int(highest.sum()) < total:
            highest = guard
        if int(highest.sum()) < total:
            raise UsageError(
                f"sparsity {sparsity} is out of reach: with max_sparsity={most} and one group kept "
                f"in every layer only {int(highest.sum()) / int(counts.sum()):.4f} can be removed"
            )
        lowest = (exact * least + 1e-9).floor().long().minimum(highest)
        return cls(counts, lowest, highest, total)

    def meet(self, offset: Tensor, slope: Tensor) -> Tensor:
        """Counts of the sparsities `offset + t slope`, with t such that the total is exact.

        Sparsities outside of the bounds are moved to the next bound, and the other layers make up
        for it.

        Args:
            offset: float64 [layers].
            slope: float64 [layers], positive.

        Returns:
            int64 [layers]; the sum is `total`.
        """
        least, most = self.least.double(), self.most.double()

        def removed(t: float) -> Tensor:
            return ((offset + t * slope) * self.groups).clamp(least, most)

        # At these ends every layer is at its lower or its upper bound.
        low = float(((least / self.groups - offset) / slope).min())
        high = float(((most / self.groups - offset) / slope).max())
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if float(removed(middle).sum()) < self.total else (low, middle)
            )
        return self.round(removed(high))

    def round(self, counts: Tensor) -> Tensor:
        """Round counts, float64 [layers], to whole numbers whose sum is `total`.

        The largest remainders are rounded up, those above the upper bound excepted.
        """
        whole = (counts + 1e-6).floor().long()
        remainder = (counts - whole).masked_fill(whole >= self.most, -torch.inf)
        missing = self.total - int(whole.sum())
        if missing > 0:
            whole[remainder.topk(missing).indices] += 1
        elif missing < 0:
            spare = remainder.masked_fill(whole <= self.least, torch.inf)
            whole[spare.topk(-missing, largest=False).indices] -= 1
        return whole


def count_lowest(scores: Sequence[Tensor], bounds: Bounds) -> Tensor:
    """Remove the lowest scores of all layers together, within the bounds of each.

    Args:
        scores: of each layer, the scores of its groups, comparable between layers.
        bounds: of the layers.

    Returns:
        int64 [layers], how many groups each layer loses.
    """
    bounded = []
    for layer_scores, least, most in zip(
        scores, bounds.least.tolist(), bounds.most.tolist(), strict=True
    ):
        ordered = layer_scores.flatten().sort().values
        ordered[:least] = -torch.inf
        ordered[most:] = torch.inf
        bounded.append(ordered)
    lowest = torch.cat(bounded).topk(bounds.total, largest=False).indices
    layer_of = torch.repeat_interleave(torch.arange(len(bounded)), bounds.groups)
    return torch.bincount(layer_of.to(lowest.device)[lowest], minlength=len(bounded)).cpu()


def guarded(scores: Sequence[Tensor], bounds: Bounds, removed: Tensor) -> list[bool]:
    """Which layers keep groups of lower scores than others lose, because of their upper bound.

    Args:
        scores: as `count_lowest` takes them.
        bounds: of the layers.
        removed: what it returned.
    """
    counts = list(zip(removed.tolist(), bounds.least.tolist(), bounds.most.tolist(), strict=True))
    flat = [own.flatten() for own in scores]
    highest = [  # those of groups that competed
        float(own.kthvalue(count).values) if count > least else -math.inf
        for own, (count, least, _) in zip(flat, counts, strict=True)
    ]
    return [
        count == most < len(own) and float(own.kthvalue(most + 1).values) < max(highest)
        for own, (count, _, most) in zip(flat, counts, strict=True)
    ]
