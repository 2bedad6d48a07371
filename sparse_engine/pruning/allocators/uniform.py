"""Uniform: every layer loses the same fraction of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sparse_engine.pruning.allocators.base import Allocator
from sparse_engine.pruning.plan import Layer


class Uniform(Allocator):
    """The sparsity of the model in every layer."""

    scope = "local"

    def allocate(
        self, layers: Sequence[Layer], scores: Mapping[str, Tensor], sparsity: float
    ) -> dict[str, float]:
        return {layer.name: sparsity for layer in layers}
