"""The interface of an allocator: the sparsity of each layer, from that of the whole model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from sparse_engine.pruning.plan import Layer


class Allocator(ABC):
    """Distributes the sparsity of a model over its layers.

    Attributes:
        scope: the name in reports and on the command line.
        needs_scores: whether `allocate` reads the scores of the criterion. If not, the layers are
            not scored before they are pruned.
    """

    scope: ClassVar[str]
    needs_scores: ClassVar[bool] = False

    @abstractmethod
    def allocate(
        self, layers: Sequence[Layer], scores: Mapping[str, Tensor], sparsity: float
    ) -> dict[str, float]:
        """Compute the sparsity of each layer.

        Args:
            layers: the layers to prune, dense.
            scores: by layer, the score of each group in the dense model; empty without
                `needs_scores`.
            sparsity: fraction of all groups to remove, 0 <= sparsity < 1.

        Returns:
            By layer, the fraction of its groups to remove.
        """
