"""Collects statistics: runs calibration inputs through the dense and the pruned model.

The hidden states of both models at the entrance of the current module of a stack are kept. So each
module runs on its own, and the whole model runs only once for each stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.plan import Layer, Plan
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.recovery.base import Block
from sparse_engine.pruning.statistics.capture import (
    Captured,
    CapturePoint,
    StopForward,
    capture_inputs,
    pre_forward_hooks,
)
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.statistics.moments import InputNorms, Moments
from sparse_engine.pruning.statistics.segments import (
    Group,
    Segment,
    find_segments,
    hidden_states,
    is_expert,
)
from sparse_engine.pruning.statistics.skipping import skipping
from sparse_engine.pruning.statistics.storage import Storage


@dataclass(frozen=True)
class Collection:
    """What to collect.

    Attributes:
        moments: collect second moments; only norms if False.
        pruned_inputs: read the inputs from the model that has been pruned so far, and compare them
            with those of the dense model. If False, the dense model alone is run.
        blocks: give the inputs and the outputs of every module of a stack to a callback.
    """

    moments: bool
    pruned_inputs: bool
    blocks: bool = False


@dataclass(frozen=True)
class States:
    """The calibration batches at the entrance of a module of a stack, as `Storage` keeps them.

    Attributes:
        dense: in the dense model.
        pruned: in the model that has been pruned so far.
    """

    dense: list[Batch]
    pruned: list[Batch]


class Collector:
    """Yields each group of layers with the statistics of its input.

    With `collection.pruned_inputs` the caller prunes a group before it requests the next one.

    Args:
        model: the unrolled model.
        plan: the layers to prune.
        batches: calibration inputs.
        dense: copies of the dense weights, where they are no longer those of the model.
        collection: what to collect.
        progress: receives what is being computed.
        on_block: with `collection.blocks`, called after the layers of a module of a stack.
        segments: as `find_segments` returns them; found with the first batches by default.
        storage: where tensors are kept from one run of a module to the next.

    Attributes:
        states: the batches at the entrance of the next module.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        batches: list[Batch],
        dense: DenseWeights,
        collection: Collection,
        progress: Progress,
        on_block: Callable[[Block], None] | None = None,
        segments: list[Segment] | None = None,
        storage: Storage | None = None,
    ) -> None:
        self._modules = dict(model.named_modules())
        self._batches = batches
        self._dense = dense
        self._plan = plan
        self._removed = {name: self._modules[name] for name in plan.removed}
        self._collection = collection
        self._progress = progress
        self._on_block = on_block
        self._segments = find_segments(model, plan, batches) if segments is None else segments
        self._storage = storage or Storage()
        self.states = States([], [])

    def groups(self) -> Iterator[tuple[Group, Moments | InputNorms | None]]:
        """Groups in the order in which they run; None for those that no token reaches."""
        for i, segment in enumerate(self._segments):
            if segment.module == "":
                for group in segment.groups:
                    captured, _ = self._capture_all(segment, [group], self._batches)
                    yield group, self._collect(segment, group, captured[0], self._batches)
                continue
            if not segment.follows:
                self.enter(segment.module, is_pruned=i > 0 or bool(self._removed))
            passes_on = i + 1 < len(self._segments) and self._segments[i + 1].follows
            yield from self.module_groups(segment, passes_on)

    def enter(self, module: str, is_pruned: bool) -> None:
        """Set `states` to those at the entrance of the first module of a stack.

        Args:
            module: its dotted name.
            is_pruned: whether layers before it have been pruned, or modules removed.
        """
        dense = pruned = self._entrance(module, is_dense=True)
        if is_pruned and self._collection.pruned_inputs:
            pruned = self._entrance(module, is_dense=False)
        self.states = States(dense, pruned)

    def module_groups(
        self, segment: Segment, passes_on: bool
    ) -> Iterator[tuple[Group, Moments | InputNorms | None]]:
        """The groups of one module of a stack, run from `states`.

        Args:
            segment: the module.
            passes_on: set `states` to those at the entrance of the next module afterwards.
        """
        dense, pruned = self.states.dense, self.states.pruned
        # One run of a module captures the dense inputs of all its groups.
        captured, dense = self._capture_all(
            segment, segment.groups, dense, to_end=passes_on or self._collection.blocks
        )
        for group, of_group in zip(segment.groups, captured, strict=True):
            yield group, self._collect(segment, group, of_group, pruned)
        if self._on_block is not None and self._collection.blocks and segment.groups:
            self._on_block(self._block(segment, pruned, self._after_removed(segment, dense)))
        if self._collection.pruned_inputs and passes_on:
            pruned = [self._following(segment, batch) for batch in pruned]
        self.states = States(dense, pruned)

    def _following(self, segment: Segment, batch: Batch) -> Batch:
        """The batch at the entrance of the next module, of the model as it is."""
        output = self._run(segment.module, self._storage.fetch(batch), False)
        return self._next_batch(segment, batch, output)

    def _next_batch(self, segment: Segment, batch: Batch, output: Any) -> Batch:
        """The batch at the entrance of the next module of a stack."""
        argument, x = segment.argument, self._storage.keep(hidden_states(output))
        if isinstance(argument, int):
            return replace(batch, args=(*batch.args[:argument], x, *batch.args[argument + 1 :]))
        return replace(batch, kwargs={**batch.kwargs, str(argument): x})

    def _after_removed(self, segment: Segment, dense: list[Batch]) -> list[Batch]:
        """The batches of the dense model after the removed modules that follow a segment."""
        for name in self._plan.removed_after(segment.module):
            outputs = (self._run(name, self._storage.fetch(batch), True) for batch in dense)
            pairs = zip(dense, outputs, strict=True)
            dense = [self._next_batch(segment, batch, output) for batch, output in pairs]
        return dense

    def _block(self, segment: Segment, pruned: list[Batch], following: list[Batch]) -> Block:
        """A module of a stack whose layers have all been pruned."""
        name = segment.module
        layers = [layer for group in segment.groups for layer in group.layers]
        inputs = [self._storage.fetch(batch) for batch in pruned]
        fetched = map(self._storage.fetch, following)
        outputs = (batch.token_rows(_entering(segment, batch), name) for batch in fetched)
        return Block(name, self._modules[name], layers, inputs, list(outputs))

    def _entrance(self, name: str, is_dense: bool) -> list[Batch]:
        """The arguments of the first module of a stack, for each batch."""
        entering: list[Batch] = []
        for i, batch in enumerate(self._batches, 1):
            self._progress.working(f"batch {i} of {len(self._batches)}, to {name}")

            def callback(_: str, args: Any, kwargs: Any, batch: Batch = batch) -> None:
                entering.append(self._storage.keep(replace(batch, args=args, kwargs=kwargs)))
                raise StopForward

            with pre_forward_hooks({name: self._modules[name]}, callback), suppress(StopForward):
                self._run("", batch, is_dense)
        return entering

    def _run(self, name: str, batch: Batch, is_dense: bool) -> Any:
        module = self._modules[name]
        with batch.naming_errors(self._modules[""]):
            if not is_dense:
                with skipping(self._removed):
                    return module(*batch.args, **batch.kwargs)
            return functional_call(module, self._dense.of(module), batch.args, batch.kwargs)

    def _capture_all(
        self, segment: Segment, groups: list[Group], batches: list[Batch], to_end: bool = False
    ) -> tuple[list[list[Captured]], list[Batch]]:
        """Capture the inputs of groups in the dense model.

        Returns:
            What was captured, by group and batch, and with `to_end` the batches at the entrance of
            the next module.
        """
        by_batch, following = [], []
        for i, batch in enumerate(batches, 1):
            where = segment.module or "whole model"
            self._progress.working(f"batch {i} of {len(batches)}, {where}")
            fetched = self._storage.fetch(batch)
            captured, output = self._capture(segment, groups, fetched, True, to_end)
            by_batch.append(self._storage.keep(captured))
            if to_end:
                following.append(self._next_batch(segment, batch, output))
        return [list(captured) for captured in zip(*by_batch, strict=True)], following

    def _capture(
        self,
        segment: Segment,
        groups: list[Group],
        batch: Batch,
        is_dense: bool,
        to_end: bool = False,
    ) -> tuple[list[Captured], Any]:
        """Run a segment once: the rows that each group reads, and the output of the segment."""
        points = []
        for group in groups:
            linear, residual = group.layers[0].linear, group.residual
            if residual is None:
                points.append(CapturePoint(linear, group.calls))
            else:
                stream_module = self._modules[residual.module]
                points.append(CapturePoint(linear, group.calls, stream_module, residual.argument))
        captured, output = capture_inputs(
            lambda: self._run(segment.module, batch, is_dense), points, to_end
        )
        layers = [group.layers[0] for group in groups]
        rows = [_token_rows(batch, c, layer) for c, layer in zip(captured, layers, strict=True)]
        return rows, output

    def _collect(
        self, segment: Segment, group: Group, dense: list[Captured], batches: list[Batch]
    ) -> Moments | InputNorms | None:
        """Sum statistics over all batches; the pruned model runs on `batches` if it is needed."""
        sums = Moments() if self._collection.moments else InputNorms()
        name = group.layers[0].name
        for kept, batch in zip(dense, batches, strict=True):
            captured = self._storage.fetch(kept)
            if not isinstance(sums, Moments) or not self._collection.pruned_inputs:
                for x in captured.inputs:
                    if len(x):
                        sums.add(x)
                continue
            self._progress.working(f"inputs of {name}, pruned so far")
            fetched = self._storage.fetch(batch)
            (pruned,), _ = self._capture(segment, [group], fetched, is_dense=False)
            streams = zip(captured.streams, pruned.streams, strict=True)
            drifts = [a.float() - b.float() for a, b in streams]
            for i, x in enumerate(pruned.inputs):
                if len(x):
                    dense_x = _dense_inputs(captured, pruned, i, is_expert(name))
                    sums.add(x, dense_x, drifts[i] if drifts else None)
        if sums.count == 0 and not is_expert(name):
            raise UsageError(
                f"no token of the calibration inputs reaches {name}; check attention_mask"
            )
        return sums if sums.count else None


def _entering(segment: Segment, batch: Batch) -> Tensor:
    """The hidden states at the entrance of the next module of a stack."""
    argument = segment.argument
    states = batch.args[argument] if isinstance(argument, int) else batch.kwargs[str(argument)]
    assert isinstance(states, Tensor)
    return states


def _token_rows(batch: Batch, captured: Captured, layer: Layer) -> Captured:
    """Captured tensors as rows [tokens, features], without those of padding."""
    inputs: list[Tensor] = []
    routed: list[Tensor | None] = []
    for x, tokens in zip(captured.inputs, captured.routed, strict=True):
        rows = batch.token_rows(x, layer.name, layer.shape[1])
        if tokens is not None:
            kept = batch.mask_of(x, tokens)
            if kept is not None:
                rows, tokens = rows[kept], tokens.masked_scatter(tokens, kept)
        inputs.append(rows)
        routed.append(tokens)
    streams = [batch.token_rows(x, layer.name) for x in captured.streams]
    return Captured(inputs, routed, streams)


def _dense_inputs(dense: Captured, pruned: Captured, run: int, is_expert: bool) -> Tensor:
    """The inputs of the dense model for the tokens that a layer reads in the pruned model.

    The dense model may route a token to other experts, or not run a step at all. Then the input of
    the pruned model takes the place of the missing one: the target of the layer is what the dense
    weights compute from it.

    Args:
        dense: what was captured in the dense model.
        pruned: what was captured in the pruned model.
        run: which run of the layer.
        is_expert: whether the tokens of the two models may differ.

    Returns:
        [tokens, in], the shape of the input in the pruned model.
    """
    x = pruned.inputs[run]
    if not is_expert and run < len(dense.inputs) and dense.inputs[run].shape == x.shape:
        return dense.inputs[run]
    x = x.clone()
    before, after = (c.routed[run] if run < len(c.routed) else None for c in (dense, pruned))
    if before is None or after is None:
        return x
    both = before & after
    x[both[after]] = dense.inputs[run][both[before]]
    return x
