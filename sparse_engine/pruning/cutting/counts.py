"""How many groups each site keeps: the same share everywhere, or all sites compete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Allocator, Sensitivity, Uniform
from sparse_engine.pruning.allocators.bounds import Bounds, count_lowest
from sparse_engine.pruning.allocators.lamp import Lamp, lamp
from sparse_engine.pruning.allocators.raw import Raw
from sparse_engine.pruning.allocators.sensitivity import Point, convex, equal_slopes, grid
from sparse_engine.pruning.cutting.ranking import Ranking
from sparse_engine.structures import Structure

ALLOCATORS: tuple[type[Allocator], ...] = (Uniform, Raw, Lamp, Sensitivity)
REASONS = {
    "erk": "it goes by the shapes of layers, which are equal in all blocks of a model",
    "owl": "it counts outliers among single weights",
}


@dataclass(frozen=True)
class SiteCount:
    """How many groups of a site are kept.

    Attributes:
        kept: the number.
        at_floor: whether more would have been removed, but for the fewest that are kept.
    """

    kept: int
    at_floor: bool


def check_allocator(allocator: Allocator) -> None:
    """Raise UsageError unless the allocator shares out structures."""
    if not isinstance(allocator, ALLOCATORS):
        known = ", ".join(cls.name for cls in ALLOCATORS)
        why = REASONS.get(allocator.name)
        raise UsageError(
            f"allocator {allocator.name} does not share out structures"
            f"{f': {why}' if why else ''}; choose {known}"
        )


def counts(
    rankings: Sequence[Ranking],
    structures: Mapping[str, Structure],
    sparsity: float,
    allocator: Allocator,
    fixed: Mapping[str, float] | None = None,
) -> list[SiteCount]:
    """How many groups each site keeps.

    Args:
        rankings: of all sites.
        structures: by kind, with the options of the run.
        sparsity: fraction of the groups of each kind to remove, unless the criterion has decided.
        allocator: one of ALLOCATORS. With "raw" the costs of all sites of one kind are compared as
            they are, with "lamp" as layer-adaptive scores; "sensitivity" makes the sum of the
            errors of all layers that read least.
        fixed: by site, sparsities of their own; these sites take no part in the allocation.
    """
    fixed = fixed or {}
    wanted: list[float] = []
    for ranking in rankings:
        own = fixed.get(ranking.site.name, sparsity)
        removed = own * ranking.site.groups if ranking.quota is None else ranking.quota
        wanted.append(ranking.site.groups - removed)
    if not isinstance(allocator, Uniform):
        for kind, structure in structures.items():
            members = [
                i
                for i, ranking in enumerate(rankings)
                if ranking.site.kind == kind and ranking.site.name not in fixed
            ]
            if not members:
                continue
            removals = _allocate([rankings[i] for i in members], structure, sparsity, allocator)
            for i, count in zip(members, removals, strict=True):
                wanted[i] = rankings[i].site.groups - count
    found: list[SiteCount] = []
    for ranking, share in zip(rankings, _even(rankings, wanted), strict=True):
        site, structure = ranking.site, structures[ranking.site.kind]
        kept = site.kept(structure.kept(site.groups, share))
        competes = not isinstance(allocator, Uniform) and site.name not in fixed
        floor = max(structure.keep, site.least)
        is_least = kept <= floor < site.groups
        limited = competes or round(share) < floor
        found.append(SiteCount(kept, is_least and limited))
    return found


def _allocate(
    rankings: Sequence[Ranking], structure: Structure, sparsity: float, allocator: Allocator
) -> list[int]:
    """How many groups each site of one kind loses."""
    sizes = [ranking.site.groups for ranking in rankings]
    bounds = Bounds.of(sizes, sparsity, allocator.min_sparsity, allocator.max_sparsity)
    floors = torch.tensor([max(structure.keep, ranking.site.least) for ranking in rankings])
    most = torch.minimum(bounds.most, (bounds.groups - floors).clamp_min(0))
    total = min(bounds.total, int(most.sum()))
    bounds = replace(bounds, least=torch.minimum(bounds.least, most), most=most, total=total)
    if isinstance(allocator, Sensitivity):
        hulls = []
        for i, ranking in enumerate(rankings):
            assert ranking.errors is not None
            errors: Any = [0.0, *ranking.errors.tolist()]
            measured = [Point(removed, errors[removed]) for removed in [0, *grid(bounds, i)]]
            hulls.append(convex(measured, int(bounds.least[i])))
        return equal_slopes(hulls, bounds).tolist()
    # A group is not removed before those in front of it.
    costs = [ranking.costs.cummax(0).values for ranking in rankings]
    if isinstance(allocator, Lamp):
        costs = [lamp(own) for own in costs]
    return count_lowest(costs, bounds).tolist()


def _even(rankings: Sequence[Ranking], wanted: list[float]) -> list[float]:
    """Sites that have to lose equally many groups get the mean of what they would keep."""
    together: dict[str, list[int]] = {}
    for i, ranking in enumerate(rankings):
        together.setdefault(ranking.site.even or f"{i}", []).append(i)
    evened = list(wanted)
    for members in together.values():
        mean = sum(wanted[i] for i in members) / len(members)
        for i in members:
            evened[i] = mean
    return evened
