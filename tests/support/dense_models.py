"""Layers, scores and statistics as an allocator reads them, without a model that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparse_engine.pruning import Element, Inputs
from sparse_engine.pruning.allocators import Allocator, Candidate, Setting
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.plan import Layer


@dataclass
class FakeDense:
    """A DenseModel whose scores, statistics and errors are given.

    Attributes:
        layers: all layers.
        given_scores: by layer, the scores of its groups.
        given_inputs: by layer, the statistics of its input.
        given_curves: by layer, the error of a sparsity.
        blocks: by layer, the module of a stack.
    """

    layers: list[Layer]
    given_scores: dict[str, Tensor] = field(default_factory=dict)
    given_inputs: dict[str, Inputs] = field(default_factory=dict)
    given_curves: dict[str, Callable[[float], float]] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)

    def scores(self) -> dict[str, Tensor]:
        return self.given_scores

    def inputs(self) -> Iterator[tuple[Layer, Inputs]]:
        for layer in self.layers:
            yield layer, self.given_inputs.get(layer.name, Inputs())

    def candidates(
        self, settings: Mapping[str, Mapping[Granularity, Sequence[float]]]
    ) -> Iterator[tuple[Layer, Iterator[Candidate]]]:
        for layer in self.layers:
            curve = self.given_curves[layer.name]
            yield (
                layer,
                iter(
                    Candidate(Setting(granularity, s), layer.weight, None, curve(s))
                    for granularity, sparsities in settings[layer.name].items()
                    for s in sparsities
                ),
            )

    def output_error(self) -> None:
        return None

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
