"""One dense forward pass that shows which layers share an input and whether blocks form a chain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.models import Residual
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.capture import after, before, linear_input
from sparse_engine.pruning.layers import Layer, Plan

Slot = int | str  # position or name of the argument of a block that takes the hidden states


@dataclass(frozen=True)
class Group:
    """Layers that read the same input, and the residual stream of the one layer that has one.

    calls: how often the layers run in one forward pass
    """

    layers: list[Layer]
    calls: int
    residual: Residual | None


@dataclass(frozen=True)
class Segment:
    """A part of the model that is run on its own; module is "" for the whole model."""

    module: str
    groups: list[Group]


@dataclass(frozen=True)
class Trace:
    """Segments in the order in which they run; all but a last whole-model one form a chain.

    slot: where each block of the chain takes the output of the one before
    """

    segments: list[Segment]
    slot: Slot | None


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def trace(model: nn.Module, plan: Plan, batch: Batch) -> Trace:
    """Run the model once and find the segments.

    If every block runs once and takes, apart from the previous block's output, what the first block
    took, each block is a segment of its own. Otherwise the whole model is the one segment: the
    same result at the cost of running the model for every group of layers.

    Raises UsageError for a layer that did not run.
    """
    modules = dict(model.named_modules())
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    calls: dict[str, list[_Call]] = defaultdict(list)
    # Holding on to every tensor seen keeps their identities distinct.
    with (
        before(
            {layer.name: layer.linear for layer in plan.layers},
            lambda name, args, kwargs: inputs[name].append(linear_input(args, kwargs)),
        ),
        after(
            {name: modules[name] for name in plan.blocks},
            lambda name, args, kwargs, output: calls[name].append(_Call(args, kwargs, output)),
        ),
        batch.running(model),
    ):
        model(*batch.args, **batch.kwargs)
    if idle := [layer.name for layer in plan.layers if layer.name not in inputs]:
        raise UsageError(
            f"{idle[0]} did not run on the first calibration batch ({len(idle)} such layers); "
            "give inputs that reach it, or leave it out with filter_fn"
        )
    groups = _group(plan, inputs)
    slot = _chain([calls[name] for name in plan.blocks])
    if slot is None:
        return Trace([Segment("", groups)], None)
    segments = [
        Segment(name, [g for g in groups if g.layers[0].name.startswith(f"{name}.")])
        for name in plan.blocks
    ]
    placed = {id(group) for segment in segments for group in segment.groups}
    if rest := [group for group in groups if id(group) not in placed]:
        segments.append(Segment("", rest))
    return Trace(segments, slot)


def _group(plan: Plan, inputs: dict[str, list[Tensor]]) -> list[Group]:
    """Layers by the tensors they read, in the order in which they run."""
    layers = {layer.name: layer for layer in plan.layers}
    groups: dict[tuple[object, ...], list[Layer]] = defaultdict(list)
    for name, seen in inputs.items():
        # A layer that adds to a residual stream has a target of its own, hence a group of its own.
        own = name if name in plan.residuals else None
        block = next((block for block in plan.blocks if name.startswith(f"{block}.")), None)
        groups[(block, own, *map(id, seen))].append(layers[name])
    return [
        Group(members, len(inputs[members[0].name]), plan.residuals.get(members[0].name))
        for members in groups.values()
    ]


def _chain(blocks: list[list[_Call]]) -> Slot | None:
    """The argument through which blocks hand on their output, or None if they do not just that."""
    if not blocks or any(len(calls) != 1 for calls in blocks):
        return None
    first, *others = [calls[0] for calls in blocks]
    if not others:
        return next((slot for slot, value in _arguments(first) if isinstance(value, Tensor)), None)
    slots: set[Slot] = set()
    previous = first
    for call in others:
        handed = hidden_states(previous.output)
        slots.update(slot for slot, value in _arguments(call) if value is handed)
        if handed is None or len(slots) != 1 or not _same_but(next(iter(slots)), first, call):
            return None
        previous = call
    return slots.pop()


def hidden_states(output: Any) -> Tensor | None:
    """The hidden states in a block's output: the output itself, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def _arguments(call: _Call) -> Iterator[tuple[Slot, Any]]:
    yield from enumerate(call.args)
    yield from call.kwargs.items()


def _same_but(slot: Slot, a: _Call, b: _Call) -> bool:
    """Whether two calls got the same arguments, apart from the one at `slot`."""
    left, right = dict(_arguments(a)), dict(_arguments(b))
    return left.keys() == right.keys() and all(
        key == slot or _same(left[key], right[key]) for key in left
    )


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, int | float | str) and type(a) is type(b) and a == b
