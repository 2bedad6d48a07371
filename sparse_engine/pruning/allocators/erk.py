"""ERK: density proportional to (in + out) / (in x out), so that narrow layers keep more.

The Erdos-Renyi kernel distribution. Mocanu et al. 2018, arXiv:1707.04780; with the kernel size of
convolutions, Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", arXiv:1911.11134.
A convolution counts with the inputs and the kernel that its matrix has: (in x kernel + out).
"""

from __future__ import annotations

import torch

from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting, settings


class ERK(Allocator):
    """Sparsity by the shapes of the layers alone; a density above 1 becomes 1."""

    name = "erk"

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        bounds = self.bounds(dense.layers, requested)
        shapes = torch.tensor([layer.shape for layer in dense.layers], dtype=torch.float64)
        density = shapes.sum(1) / shapes.prod(1)
        # Sparsity 1 - u density, with u such that the total is met.
        removed = bounds.meet(torch.ones_like(density), density)
        return settings(dense.layers, requested, removed)
