"""How many groups each site keeps: the same share everywhere, or all sites compete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Allocator, Sensitivity, Uniform
from sparse_engine.pruning.allocators.bounds import Bounds
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
    original: Mapping[str, int] | None = None,
) -> list[SiteCount]:
    """How many groups each site keeps.

    Args:
        rankings: of all sites.
        structures: by kind, with the options of the run.
        sparsity: fraction of the groups of each kind to remove, unless the criterion has decided.
        allocator: one of ALLOCATORS. With "raw" the costs of all sites of one kind are compared as
            they are, with "lamp" as layer-adaptive scores; "sensitivity" makes the sum of the
            errors of all layers that read least. Sites that lose equally many groups compete as
            one, with their mean costs, and a group of L layers counts L times.
        fixed: by site, sparsities of their own; these sites take no part in the allocation.
        original: by site, the number of groups of which sparsities are fractions, if some are gone
            already.
    """
    fixed, original = fixed or {}, original or {}
    wanted: list[float] = []
    for ranking in rankings:
        site = ranking.site
        if ranking.quota is not None:
            wanted.append(site.groups - ranking.quota)
            continue
        groups = original.get(site.name, site.groups)
        wanted.append(groups - fixed.get(site.name, sparsity) * groups)
    if not isinstance(allocator, Uniform):
        for kind, structure in structures.items():
            members = [
                i
                for i, ranking in enumerate(rankings)
                if ranking.site.kind == kind and ranking.site.name not in fixed
            ]
            if not members:
                continue
            competing = [rankings[i] for i in members]
            share = _share(competing, original, sparsity)
            removals = _allocate(competing, structure, share, allocator)
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


def _share(rankings: Sequence[Ranking], original: Mapping[str, int], sparsity: float) -> float:
    """The fraction of the groups to remove, so that `sparsity` of the original ones are gone."""
    groups = sum(ranking.site.groups for ranking in rankings)
    at_first = sum(original.get(r.site.name, r.site.groups) for r in rankings)
    return max(1 - (1 - sparsity) * at_first / groups, 0.0) if at_first > groups else sparsity


def _allocate(
    rankings: Sequence[Ranking], structure: Structure, sparsity: float, allocator: Allocator
) -> list[int]:
    """How many groups each site of one kind loses."""
    if isinstance(allocator, Sensitivity):
        bounds = _bounds(rankings, structure, sparsity, allocator)
        hulls = []
        for i, ranking in enumerate(rankings):
            assert ranking.errors is not None
            errors: Any = [0.0, *ranking.errors.tolist()]
            measured = [Point(removed, errors[removed]) for removed in [0, *grid(bounds, i)]]
            hulls.append(convex(measured, int(bounds.least[i])))
        return equal_slopes(hulls, bounds).tolist()
    together = _together(rankings)
    bounds = _bounds([rankings[of[0]] for of in together], structure, sparsity, allocator)
    sizes = torch.tensor([sum(rankings[i].site.layers for i in of) for of in together])
    # A group is not removed before those in front of it.
    costs = [
        torch.stack([rankings[i].costs for i in of]).mean(0).cummax(0).values for of in together
    ]
    if isinstance(allocator, Lamp):
        costs = [lamp(own) for own in costs]
    removed = _lowest(costs, bounds, sizes, round(sparsity * int((sizes * bounds.groups).sum())))
    found = [0] * len(rankings)
    for of, count in zip(together, removed, strict=True):
        for i in of:
            found[i] = count
    return found


def _bounds(
    rankings: Sequence[Ranking], structure: Structure, sparsity: float, allocator: Allocator
) -> Bounds:
    """How many groups each site may lose above its floor."""
    sizes = [ranking.site.groups for ranking in rankings]
    bounds = Bounds.of(sizes, sparsity, allocator.min_sparsity, allocator.max_sparsity)
    floors = torch.tensor([max(structure.keep, ranking.site.least) for ranking in rankings])
    most = torch.minimum(bounds.most, (bounds.groups - floors).clamp_min(0))
    total = min(bounds.total, int(most.sum()))
    return replace(bounds, least=torch.minimum(bounds.least, most), most=most, total=total)


def _lowest(costs: Sequence[Tensor], bounds: Bounds, sizes: Tensor, total: int) -> list[int]:
    """How many groups go if the cheapest do until a total is reached, as closely as possible.

    Args:
        costs: by site, float64 [groups], ascending.
        bounds: of each site.
        sizes: int64 [sites], how much of the total a group is.
        total: of all groups that go.
    """
    possible = []
    for own, least, most in zip(costs, bounds.least.tolist(), bounds.most.tolist(), strict=True):
        possible.append(own[:most].clone())
        possible[-1][:least] = -torch.inf
    site_of = torch.arange(len(costs)).repeat_interleave(bounds.most)
    order = torch.cat(possible).cpu().sort(stable=True).indices
    each = sizes[site_of[order]]
    gone = order[each.cumsum(0) - each / 2 <= total]
    return torch.bincount(site_of[gone], minlength=len(costs)).tolist()


def _together(rankings: Sequence[Ranking]) -> list[list[int]]:
    """The numbers of sites that lose equally many groups; most sites are by themselves."""
    together: dict[str, list[int]] = {}
    for i, ranking in enumerate(rankings):
        together.setdefault(ranking.site.even or f"{i}", []).append(i)
    return list(together.values())


def _even(rankings: Sequence[Ranking], wanted: list[float]) -> list[float]:
    """Sites that have to lose equally many groups get the mean of what they would keep."""
    evened = list(wanted)
    for members in _together(rankings):
        mean = sum(wanted[i] for i in members) / len(members)
        for i in members:
            evened[i] = mean
    return evened
