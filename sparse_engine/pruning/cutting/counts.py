"""How many groups each site keeps: the same share everywhere, or all sites compete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparse_engine.pruning.allocators.lamp import lamp
from sparse_engine.pruning.cutting.ranking import Ranking
from sparse_engine.structures import Structure

ALLOCATORS = ("uniform", "raw", "lamp")


def counts(
    rankings: Sequence[Ranking],
    structures: Mapping[str, Structure],
    sparsity: float,
    allocator: str,
) -> list[int]:
    """How many groups each site keeps.

    Args:
        rankings: of all sites.
        structures: by kind, with the options of the run.
        sparsity: fraction of the groups of each kind to remove.
        allocator: "uniform"; with "raw" the costs of all sites of one kind are compared as they
            are, with "lamp" as layer-adaptive scores.
    """
    wanted = [float(ranking.site.groups) * (1 - sparsity) for ranking in rankings]
    if allocator != "uniform":
        for kind in structures:
            of_kind = [i for i, ranking in enumerate(rankings) if ranking.site.kind == kind]
            total = sum(rankings[i].site.groups for i in of_kind)
            structure = structures[kind]
            kept = _compete(
                [rankings[i] for i in of_kind], round(sparsity * total), allocator, structure
            )
            for i, count in zip(of_kind, kept, strict=True):
                wanted[i] = count
    wanted = _even(rankings, wanted)
    return [
        structures[ranking.site.kind].kept(ranking.site.groups, count)
        for ranking, count in zip(rankings, wanted, strict=True)
    ]


def _compete(
    rankings: Sequence[Ranking], removed: int, allocator: str, structure: Structure
) -> list[float]:
    """How many groups each site keeps if the cheapest of all sites are removed."""
    costs: list[Tensor] = []
    for ranking in rankings:
        own = ranking.costs.cummax(0).values  # a group is not removed before those in front of it
        own = lamp(own).double() if allocator == "lamp" else own
        spared = min(structure.keep, ranking.site.groups)
        own[ranking.site.groups - spared :] = torch.inf
        costs.append(own)
    everything = torch.cat(costs)
    removed = min(removed, int(everything.isfinite().sum()))
    chosen = torch.zeros(len(everything), dtype=torch.bool)
    chosen[everything.sort(stable=True).indices[:removed]] = True
    parts = chosen.split([len(own) for own in costs])
    return [float((~part).sum()) for part in parts]


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
