"""The groups of a structure as criteria see them: what reads them, what computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.inputs import Inputs


@dataclass(frozen=True)
class Reader:
    """A layer that reads groups.

    Attributes:
        weight: float32 [out, in].
        inputs: its statistics in the dense model.
        groups: int64 [in], the group of each column; -1 for none.
    """

    weight: Tensor
    inputs: Inputs
    groups: Tensor

    @property
    def hessian(self) -> Tensor:
        """X X^T of its inputs, float64 [in, in], without the ridge."""
        assert self.inputs.hessian is not None
        hessian = self.inputs.hessian.double()
        return hessian - self.inputs.ridge * torch.eye(len(hessian), device=hessian.device)

    @property
    def energy(self) -> float:
        """|W X|^2, the energy of its outputs."""
        weight = self.weight.double()
        return max(float(((weight @ self.hessian) * weight).sum()), 0.0)


@dataclass(frozen=True)
class Groups:
    """The groups of one site.

    Attributes:
        count: how many there are.
        readers: the layers that read them.
        writers: of each layer that computes them, the weight [out, in] in float32 and the group of
            each row, int64 [out]; -1 for none.
        gradients: [batches or examples, count], the derivative of the loss with respect to a factor
            that all readers see before the group; None if no criterion needs it.
        mask: float64 [count], the mean of the mask of each group while masks were trained; None if
            no criterion needs it.
        layers: how many layers of a stack have a part of each group.
    """

    count: int
    readers: Sequence[Reader]
    writers: Sequence[tuple[Tensor, Tensor]] = ()
    gradients: Tensor | None = None
    mask: Tensor | None = None
    layers: int = 1

    def of_columns(self, values: Sequence[Tensor]) -> Tensor:
        """Sums over the columns that read a group, float64 [count].

        Args:
            values: [in] for each reader.
        """
        parts = zip(values, self.readers, strict=True)
        sums = [by_group(of_reader, reader.groups, self.count) for of_reader, reader in parts]
        return torch.stack(sums).sum(0)

    def of_rows(self, values: Sequence[Tensor]) -> Tensor:
        """Sums over the rows that compute a group, float64 [count].

        Args:
            values: [out] for each writer.
        """
        sums = torch.zeros(self.count, dtype=torch.float64)
        for of_writer, (_, groups) in zip(values, self.writers, strict=True):
            sums += by_group(of_writer, groups, self.count)
        return sums


@dataclass(frozen=True)
class Removals:
    """Groups in the order in which they are removed.

    Attributes:
        order: int64 [groups].
        costs: float64 [groups], what each removal costs after those before it.
    """

    order: Tensor
    costs: Tensor


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
