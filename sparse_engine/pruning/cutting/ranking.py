"""The groups of a site in the order in which they are removed, and what each removal costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.pruning.criteria import Criterion, Groups, Removals
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.criteria.structured_obs import costs_of
from sparse_engine.structures import Site

STEPS = 64  # points at which the errors of an order of removal are measured


@dataclass(frozen=True)
class Ranking:
    """The groups of a site in the order of their removal.

    Attributes:
        site: the site.
        order: int64 [groups], cheapest first.
        costs: float64 [groups], what each removal costs after those before it, in the mean of the
            layers that have a part of the group. Costs that are squared errors of outputs are
            shares of the energy of the outputs.
        errors: float64 [groups], the squared error of the layers that read the groups after each
            removal, fitted by least squares, as a share of their energy; None if not measured.
        quota: how many groups the criterion removes, if it decides that.
    """

    site: Site
    order: Tensor
    costs: Tensor
    errors: Tensor | None = None
    quota: int | None = None


def rank(
    site: Site,
    groups: Groups,
    criterion: Criterion,
    generator: torch.Generator,
    measures_errors: bool = False,
) -> Ranking:
    """Order the groups of a site by a criterion.

    Args:
        site: the site.
        groups: its groups.
        criterion: scores them.
        generator: the source of random numbers.
        measures_errors: also measure the errors of the layers that read them.
    """
    removals = criterion.removals(groups, generator)
    quota = criterion.group_quota(groups, removals) if criterion.decides_sparsity else None
    costs = removals.costs
    if criterion.scores_outputs:
        costs = costs / _energy(groups)
    elif not criterion.averages:
        costs = costs / site.layers
    errors = None
    if measures_errors:
        growth = removals.costs if criterion.fits else _growth(groups, removals)
        errors = growth.cumsum(0) / _energy(groups)
    return Ranking(site, removals.order, costs, errors, quota)


def rank_unseen(
    site: Site, groups: Groups, criterion: Criterion, generator: torch.Generator
) -> Ranking:
    """Order the groups of a site that no calibration token reaches by magnitude, at no cost."""
    removals = Magnitude().removals(groups, generator)
    nothing = torch.zeros(groups.count, dtype=torch.float64)
    return Ranking(
        site, removals.order, nothing, nothing, 0 if criterion.decides_sparsity else None
    )


def _growth(groups: Groups, removals: Removals) -> Tensor:
    """What the least-squares errors of the layers that read grow by, float64 [groups].

    It is measured after each of STEPS parts of the groups, and shared out evenly in between.
    """
    readers = costs_of(groups)
    growth = []
    for removed in removals.order.split(max(groups.count // STEPS, 1)):
        cost = sum(reader.remove(removed) for reader in readers)
        growth.append(torch.full((len(removed),), cost / len(removed), dtype=torch.float64))
    return torch.cat(growth)


def _energy(groups: Groups) -> float:
    return max(sum(reader.energy for reader in groups.readers), torch.finfo(torch.float64).tiny)
