"""Optimal brain surgeon for whole groups of columns: what each removal costs, exactly.

If the columns C of a layer are removed and the others fitted again, the error of its outputs grows
by tr(V_C (P_CC)^-1 V_C^T), with V the fit on the columns that are left and P the inverse of their
H. All rows of a layer lose the same columns, so one inverse is enough, and removals update it:

    V <- V - V_C (P_CC)^-1 P_C,:        P <- P - P_:,C (P_CC)^-1 P_C,:

A group that several layers read costs the sum over them.

Hassibi and Stork 1992, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon";
Kurtic et al. 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models",
arXiv:2302.04089.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.groups import Groups, Removals, columns_of

SHARE = 0.02  # of the groups that are left, removed between two updates; at least one


class ReaderCosts:
    """One layer that reads the groups.

    Args:
        weight: [out, in].
        hessian: [in, in], positive definite.
        columns: int64 [groups, columns of a group].
        read: the groups that the layer reads, ascending, one a row of `columns`; None for all.
    """

    def __init__(
        self, weight: Tensor, hessian: Tensor, columns: Tensor, read: Tensor | None = None
    ) -> None:
        self._fit = weight.to(torch.float64, copy=True)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
        self._columns = columns.to(weight.device)
        self._read = torch.arange(len(columns)) if read is None else read

    def of(self, groups: Tensor) -> Tensor:
        """What each of these groups costs, float64 [groups]; 0 for those that are not read."""
        costs = torch.zeros(len(groups), dtype=torch.float64, device=self._fit.device)
        costs[torch.isin(groups, self._read)] = self._alone(self._columns[self._places(groups)])
        return costs

    def _places(self, groups: Tensor) -> Tensor:
        """Where those of these groups are that the layer reads."""
        return torch.searchsorted(self._read, groups[torch.isin(groups, self._read)])

    def _alone(self, columns: Tensor) -> Tensor:
        tiles = self._inverse[columns[:, :, None], columns[:, None, :]]
        fit = self._fit.T[columns]  # [groups, columns of a group, out]
        if columns.shape[1] == 1:
            return fit.square().sum((1, 2)) / tiles[:, 0, 0]
        return (fit * torch.cholesky_solve(fit, torch.linalg.cholesky(tiles))).sum((1, 2))

    def remove(self, groups: Tensor) -> float:
        """Remove groups; returns what they cost together."""
        removed = self._columns[self._places(groups)].flatten()
        factor = torch.linalg.cholesky(self._inverse[removed][:, removed])
        step = torch.cholesky_solve(self._inverse[removed], factor)
        fit = self._fit[:, removed]
        cost = float((fit.T * torch.cholesky_solve(fit.T, factor)).sum())
        self._fit -= fit @ step
        self._inverse -= self._inverse[:, removed] @ step
        return cost


class Costs(Protocol):
    """What removals cost a layer; see `ReaderCosts`."""

    def of(self, groups: Tensor) -> Tensor:
        """What each of these groups costs, float64 [groups]."""

    def remove(self, groups: Tensor) -> float:
        """Remove groups; returns what they cost together."""


def removal_order(readers: Sequence[Costs], groups: int, turns: Sequence[Tensor] = ()) -> Removals:
    """Remove the cheapest groups until none is left.

    Several groups that are removed between two updates share their cost in the proportions of what
    each of them would cost alone.

    Args:
        readers: all layers that read the groups; they are used up.
        groups: how many there are.
        turns: sets of groups that lose theirs in turns; by default all groups are one set.
    """
    sets = list(turns) or [torch.arange(groups)]
    order, shares = [], []
    while any(len(left) for left in sets):
        for i, left in enumerate(sets):
            if not len(left):
                continue
            alone = torch.stack([reader.of(left).cpu() for reader in readers]).sum(0)
            count = max(int(SHARE * len(left)), 1)
            chosen = alone.topk(count, largest=False).indices
            cost = sum(reader.remove(left[chosen]) for reader in readers)
            order.append(left[chosen])
            sizes = alone[chosen].clamp_min(torch.finfo(torch.float64).tiny)
            shares.append(cost * sizes / sizes.sum())
            sets[i] = left[torch.isin(left, left[chosen], invert=True)]
    return Removals(torch.cat(order), torch.cat(shares))


def costs_of(groups: Groups) -> list[ReaderCosts]:
    """The costs of all layers that read groups, in the dense model."""
    found = []
    for reader in groups.readers:
        assert reader.inputs.hessian is not None
        read, numbers = reader.groups.unique(return_inverse=True)
        if int(read[0]) < 0:
            read, numbers = read[1:], numbers - 1
        columns = columns_of(numbers, len(read))
        found.append(ReaderCosts(reader.weight, reader.inputs.hessian, columns, read))
    return found
