"""The interface of an allocator: how much of each layer is removed, and in which groups."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from sparse_engine.pruning.criteria import Inputs
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.named import Named
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.statistics.needs import Statistic


@dataclass(frozen=True)
class Setting:
    """How one layer is pruned.

    Attributes:
        granularity: which of its weights are removed together.
        sparsity: fraction of its groups to remove, 0 <= sparsity < 1.
    """

    granularity: Granularity
    sparsity: float


class DenseModel(Protocol):
    """The layers before they are pruned, as an allocator reads them."""

    @property
    def layers(self) -> Sequence[Layer]:
        """All layers to prune."""

    def scores(self) -> dict[str, Tensor]:
        """By layer, the score of each group of weights by the criterion."""

    def inputs(self) -> Iterator[tuple[Layer, Inputs]]:
        """Each layer with the statistics of its input that the allocator and the criterion need."""


class Allocator(Named):
    """Distributes the sparsity of a model over its layers.

    Attributes:
        needs: the statistics that `allocate` reads, besides those of the criterion.
        is_uniform: whether all layers get the sparsity of the model, which is the only possibility
            if the granularity fixes it.
    """

    kind = "allocator"
    needs: ClassVar[tuple[Statistic, ...]] = ()
    is_uniform: ClassVar[bool] = False

    @abstractmethod
    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        """Compute the setting of each layer.

        Args:
            dense: the layers and the statistics of their inputs.
            requested: the granularity, and the sparsity of the whole model.

        Returns:
            By the name of the layer, how it is pruned.
        """
