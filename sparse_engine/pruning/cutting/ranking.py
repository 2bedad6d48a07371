"""In which order the groups of a site are removed, and what each removal costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.criteria.base import Inputs
from sparse_engine.pruning.criteria.obs import OBS
from sparse_engine.pruning.cutting.obs import ReaderCosts, removal_order
from sparse_engine.structures import Site


@dataclass(frozen=True)
class Reader:
    """A layer that reads the groups of a site.

    Attributes:
        weight: float32 [out, in].
        inputs: its statistics in the dense model.
        groups: int64 [in], the group of each column; -1 for none.
    """

    weight: Tensor
    inputs: Inputs
    groups: Tensor


@dataclass(frozen=True)
class Ranking:
    """The groups of a site in the order of their removal.

    Attributes:
        site: the site.
        order: int64 [groups], cheapest first.
        costs: float64 [groups], what each removal costs after those before it.
    """

    site: Site
    order: Tensor
    costs: Tensor


def rank(
    site: Site,
    readers: Sequence[Reader],
    criterion: Criterion,
    generator: torch.Generator,
    writers: Sequence[tuple[Tensor, Tensor]] = (),
) -> Ranking:
    """Order the groups of a site by a criterion.

    The score of a group is the sum over the columns that read it. With `obs` it is exactly what the
    errors of the readers grow by when the group is removed after those before it.

    Args:
        site: the site.
        readers: all layers that read its groups.
        criterion: scores them.
        generator: the source of random numbers.
        writers: the weights [out, in] that compute the groups, and the group of each row; counted
            by a criterion with `counts_writers`.
    """
    if isinstance(criterion, OBS):
        costs = [
            ReaderCosts(
                reader.weight, reader.inputs.hessian, columns_of(reader.groups, site.groups)
            )
            for reader in readers
            if reader.inputs.hessian is not None
        ]
        removals = removal_order(costs, site.groups)
        return Ranking(site, removals.order, removals.costs)
    scores = torch.zeros(site.groups, dtype=torch.float64)
    for reader in readers:
        of_columns = criterion.column_scores(reader.weight, reader.inputs, reader.groups, generator)
        scores += by_group(of_columns, reader.groups, site.groups)
    if criterion.counts_writers:
        for weight, groups in writers:
            rows = criterion.score(weight, Inputs(), generator).double().sum(1)
            scores += by_group(rows, groups, site.groups)
    ordered = scores.sort(stable=True)
    return Ranking(site, ordered.indices, ordered.values)


def by_group(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums over the members of each group, float64 [count]; -1 belongs to none."""
    known = groups >= 0
    sums = torch.zeros(count, dtype=torch.float64)
    return sums.index_add_(0, groups[known], values.double().cpu()[known])


def columns_of(groups: Tensor, count: int) -> Tensor:
    """The columns of each group, int64 [count, columns of a group].

    Args:
        groups: int64 [in], the group of each column; each group has equally many.
        count: how many groups there are.
    """
    order = groups.argsort(stable=True)[int((groups < 0).sum()) :]
    return order.view(count, -1)
