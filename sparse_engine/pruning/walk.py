"""Runs calibration inputs through the dense and the pruned model side by side, block by block.

The hidden states of both at the entrance of the current block are kept, so that each block is run
on its own and forward passes of the whole model are needed only once a stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.layers import Layer, Plan
from sparse_engine.pruning.progress import Steps
from sparse_engine.pruning.statistics.capture import Seen, Stop, Wanted, before, read_inputs
from sparse_engine.pruning.statistics.moments import InputNorms, Moments
from sparse_engine.pruning.trace import Group, Segment, hidden_states, is_expert, trace


class Originals:
    """Copies of the parameters that pruning changes: the dense model, and the way back to it."""

    def __init__(self, layers: list[Layer]) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in layers:
            for parameter in layer.linear._parameters.values():
                if parameter is not None:
                    self._copies[id(parameter)] = parameter, parameter.detach().clone()

    def within(self, module: nn.Module) -> dict[str, Tensor]:
        """Dense parameters of a module by name."""
        named = module.named_parameters(remove_duplicate=False)
        return {name: self._copies[id(p)][1] for name, p in named if id(p) in self._copies}

    def restore(self) -> None:
        """Undo everything."""
        for parameter, copy in self._copies.values():
            parameter.data.copy_(copy)


@dataclass(frozen=True)
class Need:
    """What to collect: norms alone or all moments, and whether the pruned path is run as well."""

    hessian: bool
    both_paths: bool


class Walk:
    """Yields each group of layers with the statistics of its input.

    The caller prunes the group before it asks for the next one. With `need.both_paths` X comes from
    the model pruned so far, else from the dense model.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        batches: list[Batch],
        originals: Originals,
        need: Need,
        steps: Steps,
    ) -> None:
        self._modules = dict(model.named_modules())
        self._batches = batches
        self._originals = originals
        self._need = need
        self._steps = steps
        self._segments = trace(model, plan, batches)

    def groups(self) -> Iterator[tuple[Group, Moments | InputNorms | None]]:
        """Groups in the order in which they run; without statistics where no token reaches them."""
        dense = pruned = self._batches
        for i, segment in enumerate(self._segments):
            if segment.module == "":
                for group in segment.groups:
                    seen, _ = self._read(segment, [group], self._batches)
                    yield group, self._collect(segment, group, seen[0], self._batches)
                continue
            if not segment.follows:
                dense = pruned = self._entrance(segment.module, is_dense=True)
                if i and self._need.both_paths:
                    pruned = self._entrance(segment.module, is_dense=False)
            hands_on = i + 1 < len(self._segments) and self._segments[i + 1].follows
            # One run of a block shows the dense inputs of all its groups.
            seen, following = self._read(segment, segment.groups, dense, to_end=hands_on)
            for group, seen_of_group in zip(segment.groups, seen, strict=True):
                yield group, self._collect(segment, group, seen_of_group, pruned)
            dense = following
            if self._need.both_paths and hands_on:
                pruned = [
                    self._next(segment, b, self._run(segment.module, b, False)) for b in pruned
                ]

    def _entrance(self, name: str, is_dense: bool) -> list[Batch]:
        """What the first block of a stack is called with, for each batch."""
        entering: list[Batch] = []
        for i, batch in enumerate(self._batches, 1):
            self._steps.working(f"batch {i} of {len(self._batches)}, to {name}")

            def see(_: str, args: Any, kwargs: Any, batch: Batch = batch) -> None:
                entering.append(replace(batch, args=args, kwargs=kwargs))
                raise Stop

            with before({name: self._modules[name]}, see), suppress(Stop):
                self._run("", batch, is_dense)
        return entering

    def _run(self, name: str, batch: Batch, is_dense: bool) -> Any:
        module = self._modules[name]
        with batch.running(self._modules[""]):
            if not is_dense:
                return module(*batch.args, **batch.kwargs)
            return functional_call(module, self._originals.within(module), batch.args, batch.kwargs)

    def _next(self, segment: Segment, batch: Batch, output: Any) -> Batch:
        """The batch at the entrance of the next block."""
        slot, x = segment.slot, hidden_states(output)
        if isinstance(slot, int):
            return replace(batch, args=(*batch.args[:slot], x, *batch.args[slot + 1 :]))
        return replace(batch, kwargs={**batch.kwargs, str(slot): x})

    def _read(
        self, segment: Segment, groups: list[Group], batches: list[Batch], to_end: bool = False
    ) -> tuple[list[list[Seen]], list[Batch]]:
        """What enters each group in the dense model, by group and batch.

        With `to_end` also the batches at the entrance of the next block.
        """
        by_batch, following = [], []
        for i, batch in enumerate(batches, 1):
            self._steps.working(f"batch {i} of {len(batches)}, {segment.module or 'whole model'}")
            seen, output = self._watch(segment, groups, batch, True, to_end)
            by_batch.append(seen)
            if to_end:
                following.append(self._next(segment, batch, output))
        return [list(seen) for seen in zip(*by_batch, strict=True)], following

    def _watch(
        self,
        segment: Segment,
        groups: list[Group],
        batch: Batch,
        is_dense: bool,
        to_end: bool = False,
    ) -> tuple[list[Seen], Any]:
        """One run of a segment: the tokens that enter each group, and the segment's output."""
        wanted = []
        for group in groups:
            linear, where = group.layers[0].linear, group.residual
            if where is None:
                wanted.append(Wanted(linear, group.calls))
            else:
                parent = self._modules[where.module]
                wanted.append(Wanted(linear, group.calls, parent, where.argument))
        raw, output = read_inputs(
            lambda: self._run(segment.module, batch, is_dense), wanted, to_end
        )
        layers = [group.layers[0] for group in groups]
        return [_tokens(batch, s, layer) for s, layer in zip(raw, layers, strict=True)], output

    def _collect(
        self, segment: Segment, group: Group, dense: list[Seen], batches: list[Batch]
    ) -> Moments | InputNorms | None:
        """Statistics over all batches; the pruned model is run on `batches` if it is needed."""
        moments = Moments() if self._need.hessian else InputNorms()
        name = group.layers[0].name
        for seen, batch in zip(dense, batches, strict=True):
            if not isinstance(moments, Moments) or not self._need.both_paths:
                for x in seen.inputs:
                    if len(x):
                        moments.add(x)
                continue
            self._steps.working(f"inputs of {name}, pruned so far")
            (now,), _ = self._watch(segment, [group], batch, is_dense=False)
            pairs = zip(seen.streams, now.streams, strict=True)
            drifts = [was.float() - is_now.float() for was, is_now in pairs]
            for i, x in enumerate(now.inputs):
                if len(x):
                    moments.add(
                        x,
                        _same_tokens(seen, now, i, is_expert(name)),
                        drifts[i] if drifts else None,
                    )
        if moments.count == 0 and not is_expert(name):
            raise UsageError(
                f"no token of the calibration inputs reaches {name}; check attention_mask"
            )
        return moments if moments.count else None


def _tokens(batch: Batch, seen: Seen, layer: Layer) -> Seen:
    """What was seen, as rows [tokens, features], those of padding left out."""
    inputs: list[Tensor] = []
    routed: list[Tensor | None] = []
    for x, where in zip(seen.inputs, seen.routed, strict=True):
        rows = batch.tokens(x, layer.name, layer.shape[1])
        if where is not None:
            real = next((r.flatten() for r in batch.real if r.numel() == len(where)), None)
            if real is not None:
                rows, where = rows[real[where]], where & real
        inputs.append(rows)
        routed.append(where)
    return Seen(inputs, routed, [batch.tokens(x, layer.name) for x in seen.streams])


def _same_tokens(was: Seen, now: Seen, run: int, routed: bool) -> Tensor:
    """For a layer's inputs in the pruned model: what the dense model gives for the same tokens.

    A token that the dense model sends to other experts, or a step that it does not take, has no such
    input: that of the pruned model stands for it, so that the layer does for it what it would have
    done.
    """
    if not routed and run < len(was.inputs) and was.inputs[run].shape == now.inputs[run].shape:
        return was.inputs[run]
    x = now.inputs[run].clone()
    before, after = (seen.routed[run] if run < len(seen.routed) else None for seen in (was, now))
    if before is None or after is None:
        return x
    both = before & after
    x[both[after]] = was.inputs[run][both[before]]
    return x
