"""The layers of a model in the order in which they are pruned, with the statistics of their inputs.

The loop over layers and the allocators read this interface, so that neither depends on where the
weights of a layer come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeAlias

from torch import Tensor, nn

from sparse_engine.pruning.allocators import Candidate
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.criteria import Inputs
from sparse_engine.pruning.gates import (
    GateMoments,
    GatePair,
    SingleLayer,
    collect_moments,
    find_pairs,
)
from sparse_engine.pruning.gradients.weighted_outputs import WeightedOutputs
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.plan import Layer, Plan
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.prune_layer import score_layer, trace_layer
from sparse_engine.pruning.recovery.base import Block
from sparse_engine.pruning.statistics.collector import Collection, Collector
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.statistics.input_statistics import InputStatistics, LayerGradients
from sparse_engine.pruning.target.outputs import OutputError

LayerGroups: TypeAlias = Iterator[tuple[list[Layer], InputStatistics]]


class LayerSource(ABC):
    """The layers to prune.

    Attributes:
        layers: all of them.
    """

    layers: list[Layer]

    @abstractmethod
    def groups(
        self, collection: Collection, on_block: Callable[[Block], None] | None = None
    ) -> LayerGroups:
        """Yield the layers that share an input, and its statistics, in the order of the model.

        Args:
            collection: what to collect. If `pruned_inputs` is set, the caller prunes a group before
                it requests the next one.
            on_block: with `collection.blocks`, called after the layers of a module of a stack.
        """

    @abstractmethod
    def block_of(self, layer: str) -> str:
        """The module of a stack that a layer belongs to; the layer itself outside of stacks."""

    def gate_pairs(self) -> list[GatePair]:
        """The input and recurrent matrices of recurrent layers that can be pruned together."""
        return []

    def gate_moments(
        self, pairs: Sequence[GatePair | SingleLayer], seed: int
    ) -> list[GateMoments | None]:
        """The weighted second moments of pairs; None for those that the outputs do not depend on.

        They are those of the dense model, and computed once.

        Args:
            pairs: some of `gate_pairs`, and layers by themselves.
            seed: of the random numbers of the loss.
        """
        raise NotImplementedError

    def without(self, names: set[str]) -> LayerSource:
        """The same source without the layers of these names."""
        raise NotImplementedError

    def working(self, text: str) -> None:
        """Tell the progress bar what is being computed; by default there is none."""
        return None

    def output_error(self) -> Callable[[], float] | None:
        """See `DenseModel.output_error`; None for a source that does not hold the whole model."""
        return None


class DenseSource:
    """The layers of a source before they are pruned: a `DenseModel` of the allocators.

    Args:
        source: the layers; those with a setting of their own are left out.
        method: its criterion scores them.
    """

    def __init__(self, source: LayerSource, method: Method) -> None:
        self._source = source
        self._method = method
        self._layers = [layer for layer in source.layers if method.variant_of(layer.name) is None]

    @property
    def layers(self) -> list[Layer]:
        """The layers whose sparsity is to be allocated."""
        return self._layers

    def block_of(self, layer: str) -> str:
        """The module of a stack that a layer belongs to; the layer itself outside of stacks."""
        return self._source.block_of(layer)

    def scores(self) -> dict[str, Tensor]:
        """By layer, the score of each group of weights by the criterion."""
        granularity = self._method.granularity
        return {
            layer.name: granularity.group_scores(score_layer(layer, statistics, self._method))
            for layer, statistics in self._with_statistics()
        }

    def inputs(self) -> Iterator[tuple[Layer, Inputs]]:
        """Each layer with the statistics of its input that the allocator and the criterion need."""
        for layer, statistics in self._with_statistics():
            yield layer, statistics.inputs(layer)

    def _with_statistics(self) -> Iterator[tuple[Layer, InputStatistics]]:
        names = {layer.name for layer in self._layers}
        for layers, statistics in self._source.groups(self._method.scoring_collection):
            yield from ((layer, statistics) for layer in layers if layer.name in names)

    def candidates(
        self, settings: Mapping[str, Mapping[Granularity, Sequence[float]]]
    ) -> Iterator[tuple[Layer, Iterator[Candidate]]]:
        """Each layer with what criterion and recovery make of it; the layer does not change."""
        for layer, statistics in self._with_statistics():
            traces = [
                trace_layer(layer, statistics, granularity, sparsities, self._method)
                for granularity, sparsities in settings[layer.name].items()
            ]
            yield layer, chain.from_iterable(traces)

    def working(self, text: str) -> None:
        """Tell the progress bar what is being computed."""
        self._source.working(text)

    def output_error(self) -> Callable[[], float] | None:
        """A function that compares the model's outputs, with the layers' weights as they are now.

        None if the source cannot run the whole model.
        """
        return self._source.output_error()


class ModelSource(LayerSource):
    """The layers of a model in memory.

    Args:
        model: the unrolled model, in evaluation mode.
        plan: the layers to prune.
        batches: calibration inputs; without any the statistics are empty.
        dense: copies of the dense weights.
        progress: receives what is being computed.
        gradients: of the dense model, if the method needs them.
        reference: what the outputs of the model are compared with, where structures were removed
            before; None for the model itself.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        batches: list[Batch],
        dense: DenseWeights,
        progress: Progress,
        gradients: LayerGradients | None = None,
        reference: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.layers = plan.layers
        self.batches = batches
        self._plan = plan
        self._dense = dense
        self._progress = progress
        self._gradients = gradients
        self._reference = reference
        self._gate_moments: dict[str, GateMoments | None] = {}

    def block_of(self, layer: str) -> str:
        return self._plan.stack_module_of(layer) or layer

    def groups(
        self, collection: Collection, on_block: Callable[[Block], None] | None = None
    ) -> LayerGroups:
        if not self.layers:
            return
        if not self.batches:
            yield from (([layer], InputStatistics(None)) for layer in self.layers)
            return
        collector = Collector(
            self.model, self._plan, self.batches, self._dense, collection, self._progress, on_block
        )
        for group, collected in collector.groups():
            yield group.layers, InputStatistics(collected, self._gradients)

    def gate_pairs(self) -> list[GatePair]:
        return find_pairs(self.model, self.layers) if self.batches else []

    def gate_moments(
        self, pairs: Sequence[GatePair | SingleLayer], seed: int
    ) -> list[GateMoments | None]:
        new = [pair for pair in pairs if pair.layers[0].name not in self._gate_moments]
        if new:
            working, loss = self._progress.working, WeightedOutputs()
            found = collect_moments(self.model, new, self.batches, self._dense, loss, seed, working)
            names = (pair.layers[0].name for pair in new)
            self._gate_moments.update(zip(names, found, strict=True))
        return [self._gate_moments[pair.layers[0].name] for pair in pairs]

    def without(self, names: set[str]) -> ModelSource:
        layers = [layer for layer in self.layers if layer.name not in names]
        plan = replace(self._plan, layers=layers)
        source = ModelSource(
            self.model,
            plan,
            self.batches,
            self._dense,
            self._progress,
            self._gradients,
            self._reference,
        )
        source._gate_moments = self._gate_moments
        return source

    def working(self, text: str) -> None:
        self._progress.working(text)

    def output_error(self) -> Callable[[], float]:
        return OutputError(self.model, self.batches, self._reference)
