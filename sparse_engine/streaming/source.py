"""The layers of a checkpoint, loaded one module of the stack at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.plan import Layer, Plan
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.recovery.base import Block
from sparse_engine.pruning.source import LayerGroups, LayerSource
from sparse_engine.pruning.statistics.collector import Collection, Collector, States
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.statistics.input_statistics import InputStatistics
from sparse_engine.pruning.statistics.segments import Segment, find_segments
from sparse_engine.streaming.storage import DiskStorage
from sparse_engine.streaming.weights import Weights

PROBE_TOKENS = 8


class Journal(Protocol):
    """What is done with each module whose layers have been pruned."""

    def resume(self) -> tuple[int, list[Any], list[Any]]:
        """How many modules are finished, and the states at the entrance of the next one."""

    def finish(self, done: int, layers: list[Layer]) -> None:
        """Write the layers of a module, which is still loaded."""

    def save(self, done: int, dense: list[Any], pruned: list[Any]) -> None:
        """Record that so many modules are finished, and the states."""


class StreamedSource(LayerSource):
    """The layers of one stack. Only the module whose layers are yielded has weights.

    Args:
        model: the model without weights, in evaluation mode.
        weights: loads them.
        plan: the layers to prune, all of one stack.
        segments: the modules of the stack, as `find_modules` returns them.
        batches: calibration inputs; without any the statistics are empty.
        progress: receives what is being computed.
        storage: of the calibration states.
        journal: None if the layers are only read.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        plan: Plan,
        segments: list[Segment],
        batches: list[Batch],
        progress: Progress,
        storage: DiskStorage,
        journal: Journal | None = None,
    ) -> None:
        self.layers = plan.layers
        self._model = model
        self._weights = weights
        self._plan = plan
        self._segments = segments
        self._batches = batches
        self._storage = storage
        self._progress = progress
        self._journal = journal

    def block_of(self, layer: str) -> str:
        return self._plan.stack_module_of(layer) or layer

    def groups(
        self, collection: Collection, on_block: Callable[[Block], None] | None = None
    ) -> LayerGroups:
        start, dense, pruned = self._journal.resume() if self._journal else (0, [], [])
        if start == len(self._segments):
            return
        collector = None
        if self._batches:
            collector = self._entered(collection, on_block)
            if start:
                collector.states = self._resumed(collector.states, dense, pruned)
        for i, segment in enumerate(self._segments[start:], start):
            layers = [layer for group in segment.groups for layer in group.layers]
            self._storage.start_file(f"{i % 2}")
            with self._weights.loaded(segment.module):
                if collector is None:
                    yield from (([layer], InputStatistics(None)) for layer in layers)
                else:
                    passes_on = i + 1 < len(self._segments)
                    for group, collected in collector.module_groups(segment, passes_on):
                        biases = {layer.linear.bias is None for layer in group.layers}
                        alike = len(biases) == 1
                        statistics = InputStatistics(collected, has_one_system=alike)
                        del collected
                        yield group.layers, statistics
                        statistics.release()  # before the next ones are collected
                if self._journal:
                    self._journal.finish(i + 1, layers)
            if self._journal:
                states = collector.states if collector else States([], [])
                argument = segment.argument
                self._storage.flush()
                self._journal.save(
                    i + 1,
                    [_stream(batch, argument) for batch in states.dense],
                    [_stream(batch, argument) for batch in states.pruned],
                )

    def _entered(
        self, collection: Collection, on_block: Callable[[Block], None] | None
    ) -> Collector:
        """A collector at the entrance of the first module."""
        collector = Collector(
            self._model,
            self._plan,
            self._batches,
            DenseWeights([]),  # a module has its dense weights when it runs as the dense one
            collection,
            self._progress,
            on_block,
            self._segments,
            self._storage,
        )
        first = self._segments[0].module
        (stack,) = self._plan.stacks
        self._storage.start_file("entrance")
        with self._weights.on_demand(stack[: stack.index(first)]):
            collector.enter(first, is_pruned=False)
        return collector

    def _resumed(self, entrance: States, dense: list[Any], pruned: list[Any]) -> States:
        """The states at the entrance of a later module: other arguments are those of the first."""
        argument = self._segments[0].argument
        batches = (entrance.dense, entrance.pruned)
        found = [
            [_with_stream(b, argument, kept) for b, kept in zip(of_model, states, strict=True)]
            for of_model, states in zip(batches, (dense, pruned), strict=True)
        ]
        return States(*found)


def _stream(batch: Batch, argument: Any) -> Any:
    """The hidden states among the arguments of a module."""
    return batch.args[argument] if isinstance(argument, int) else batch.kwargs[argument]


def _with_stream(batch: Batch, argument: Any, states: Any) -> Batch:
    if isinstance(argument, int):
        args = (*batch.args[:argument], states, *batch.args[argument + 1 :])
        return replace(batch, args=args)
    return replace(batch, kwargs={**batch.kwargs, argument: states})


def find_modules(
    model: nn.Module, weights: Weights, plan: Plan, batches: list[Batch]
) -> list[Segment]:
    """The modules of the stack, with their groups of layers, by a run of a few tokens.

    Raises:
        UnsupportedModelError: the modules of the stack cannot be run one after the other.
    """
    (stack,) = plan.stacks
    with weights.on_demand(stack), weights.stopping_after_stack():
        segments = find_segments(model, plan, [_beginning(batches[0])])
    for i, segment in enumerate(segments):
        if segment.module not in stack or (i > 0 and not segment.follows):
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be streamed: the modules of {_common(stack)} do "
                "not simply follow each other"
            )
    return segments


def _common(stack: list[str]) -> str:
    """The list that the modules of a stack are in."""
    return stack[0].rpartition(".")[0] or "the model"


def _beginning(batch: Batch) -> Batch:
    """The first tokens of the first text of a batch, where its tensors are [batch, tokens, ...]."""
    ids = next(
        (v for v in (*batch.args, *batch.kwargs.values()) if getattr(v, "ndim", 0) >= 2), None
    )
    if ids is None:
        return batch
    shape = ids.shape[:2]

    def cut(value: Any) -> Any:
        fits = getattr(value, "ndim", 0) >= 2 and value.shape[:2] == shape
        return value[:1, :PROBE_TOKENS] if fits else value

    return Batch(
        tuple(map(cut, batch.args)),
        {key: cut(value) for key, value in batch.kwargs.items()},
        tuple(map(cut, batch.masks)),
        batch.items[:1],
    )
