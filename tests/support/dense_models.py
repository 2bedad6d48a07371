"""Layers, scores and statistics as an allocator reads them, without a model that runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparse_engine.pruning import Element, Inputs
from sparse_engine.pruning.allocators import Allocator, Setting
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.plan import Layer


@dataclass
class FakeDense:
    """A DenseModel whose scores, statistics and errors are given.

    Attributes:
        layers: all layers.
        given_scores: by layer, the scores of its groups.
        given_inputs: by layer, the statistics of its input.
        given_errors: by layer, the error at each sparsity.
        blocks: by layer, the module of a stack.
    """

    layers: list[Layer]
    given_scores: dict[str, Tensor] = field(default_factory=dict)
    given_inputs: dict[str, Inputs] = field(default_factory=dict)
    given_errors: dict[str, list[float]] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)

    def scores(self) -> dict[str, Tensor]:
        return self.given_scores

    def inputs(self) -> Iterator[tuple[Layer, Inputs]]:
        for layer in self.layers:
            yield layer, self.given_inputs.get(layer.name, Inputs())

    def errors(
        self, granularity: Granularity, sparsities: Sequence[float]
    ) -> Iterator[tuple[Layer, list[float]]]:
        for layer in self.layers:
            yield layer, self.given_errors[layer.name]

    def block_of(self, layer: str) -> str:
        return self.blocks.get(layer, layer)


def layers_of(**shapes: tuple[int, int]) -> list[Layer]:
    """Layers of random weights by name."""
    torch.manual_seed(0)
    return [
        Layer(name, nn.Linear(columns, rows, bias=False))
        for name, (rows, columns) in shapes.items()
    ]


def counts(
    allocator: Allocator,
    dense: FakeDense,
    sparsity: float,
    granularity: Granularity | None = None,
) -> dict[str, int]:
    """How many groups each layer loses; checks that a layer's sparsity gives a whole number."""
    granularity = granularity or Element()
    settings = allocator.allocate(dense, Setting(granularity, sparsity))
    removed = {}
    for layer in dense.layers:
        setting = settings[layer.name]
        assert setting.granularity == granularity
        removed[layer.name] = granularity.quota(*layer.shape, setting.sparsity)
        share = removed[layer.name] / granularity.groups(*layer.shape)
        assert abs(share - setting.sparsity) < 1e-12
    return removed
