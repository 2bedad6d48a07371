"""Groups of weights that a learned mask keeps or removes together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from sparse_engine.training.layers import TrainedLayer

Values: TypeAlias = Callable[[TrainedLayer], Tensor]
"""A number for each weight of a layer, [out, in]."""


class WeightGroups(ABC):
    """The groups of one layer, or of one site of structures.

    Attributes:
        name: dotted name of the layer or site.
        count: how many groups there are.
        least: the fewest that may be kept.
        sizes: int64 [count], number of weights of each group.
        layers: those whose weights belong to groups.
    """

    name: str
    count: int
    least: int
    sizes: Tensor
    layers: tuple[TrainedLayer, ...]

    @abstractmethod
    def sums(self, values: Values) -> Tensor:
        """Sums over the weights of each group, [count].

        Args:
            values: of each weight, float32 or float64.
        """

    @abstractmethod
    def factors(self, of_groups: Tensor) -> Iterator[tuple[TrainedLayer, Tensor]]:
        """Each layer with the factor of its weights, which broadcasts to [out, in].

        A weight that belongs to two groups, as that of a recurrent network does, has the product of
        their factors.

        Args:
            of_groups: [count], numbers or bool.
        """

    @property
    def weights(self) -> int:
        """Number of weights in all groups."""
        return int(self.sizes.sum())

    @property
    def whole(self) -> WeightGroups:
        """The groups with all of their weights, also those that need no mask while they train."""
        return self


def combined(
    groups: Iterable[WeightGroups], of_groups: Iterable[Tensor]
) -> Iterator[tuple[TrainedLayer, Tensor]]:
    """Each layer once, with the product of the factors that all groups give its weights.

    Args:
        groups: of layers and sites.
        of_groups: [count] of each.
    """
    found: dict[str, tuple[TrainedLayer, Tensor]] = {}
    for own, values in zip(groups, of_groups, strict=True):
        for layer, factor in own.factors(values):
            if layer.name in found:
                factor = found[layer.name][1] * factor
            found[layer.name] = layer, factor
    for layer, factor in found.values():
        yield layer, factor.expand(layer.shape)


def full_precision(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are that."""
    return values if values.dtype == torch.float64 else values.float()
