"""OWL: layers with more outliers keep more.

    D = share of the |w_ij| norm(x_j) above m times their mean
    sparsity = S + limit - 2 limit (D - min D) / (max D - min D), shifted to the mean S

Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs
to High Sparsity", arXiv:2310.05175.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting, settings
from sparse_engine.pruning.criteria import Inputs
from sparse_engine.pruning.plan import Layer


@dataclass(frozen=True)
class OWL(Allocator):
    """Sparsity by the share of outliers among the weights times the norms of their inputs.

    As in the paper the layers of one block of a stack count together and get one sparsity. A layer
    outside of the stacks is a block of its own. Experts that no calibration token reaches have no
    outliers.

    Args:
        m: an outlier is larger than `m` times the mean, above 1; the paper takes 3 to 10.
        limit: sparsities of two blocks differ by at most twice this, before the bounds.
    """

    name = "owl"
    needs = ("norms",)
    m: float = 5.0
    limit: float = 0.08

    def __post_init__(self) -> None:
        if not 1 < self.m < float("inf"):
            raise UsageError(f"allocator owl: m={self.m} is not above 1 and finite")
        if not 0 <= self.limit <= 0.5:
            raise UsageError(f"allocator owl: limit={self.limit} is not a number from 0 to 0.5")

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        ratios = self._outliers(dense)
        blocks = {layer.name: dense.block_of(layer.name) for layer in dense.layers}
        layers = [layer for layer in dense.layers if blocks[layer.name] in ratios]
        bounds = self.bounds(layers, requested)
        of_layer = torch.tensor(
            [ratios[blocks[layer.name]] for layer in layers], dtype=torch.float64
        )
        low, high = of_layer.min(), of_layer.max()
        rank = (of_layer - low) / (high - low) if high > low else torch.zeros_like(of_layer)
        sparsity = requested.sparsity - 2 * self.limit * rank
        return settings(layers, requested, bounds.meet(sparsity, torch.ones_like(sparsity)))

    def _outliers(self, dense: DenseModel) -> dict[str, float]:
        """By block, the share of outliers."""
        outliers: dict[str, int] = {}
        weights: dict[str, int] = {}
        for block, members in groupby(dense.inputs(), lambda pair: dense.block_of(pair[0].name)):
            energies = [_energies(layer, inputs) for layer, inputs in members]
            size = sum(e.numel() for e in energies)
            mean = sum(float(e.sum(dtype=torch.float64)) for e in energies) / size
            count = sum(int((e > self.m * mean).sum()) for e in energies)
            # A block is visited again if some of its layers are experts without a token.
            outliers[block] = outliers.get(block, 0) + count
            weights[block] = weights.get(block, 0) + size
        return {block: outliers[block] / weights[block] for block in outliers}


def _energies(layer: Layer, inputs: Inputs) -> Tensor:
    """|w_ij| norm(x_j), [out, in]; zeros without a token."""
    weight = layer.weight.detach().float().abs()
    return torch.zeros_like(weight) if inputs.norms is None else weight * inputs.norms
