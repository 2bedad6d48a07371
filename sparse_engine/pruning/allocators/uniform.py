"""Uniform: every layer loses the same fraction of its groups."""

from __future__ import annotations

from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting


class Uniform(Allocator):
    """The sparsity of the model in every layer."""

    name = "uniform"
    aliases = ("local",)
    is_uniform = True

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        return {layer.name: requested for layer in dense.layers}
