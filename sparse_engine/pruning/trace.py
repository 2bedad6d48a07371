"""A dense forward pass that shows which layers share an input and whether blocks form chains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.models import Residual
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.layers import IDLE, Layer, Plan
from sparse_engine.pruning.statistics.capture import after, before, linear_input

Slot = int | str  # position or name of the argument of a block that takes the hidden states


@dataclass(frozen=True)
class Group:
    """Layers that read the same input, and the residual stream of the one layer that has one.

    calls: how often the layers run in one forward pass; 0 for an expert that nothing reaches
    """

    layers: list[Layer]
    calls: int
    residual: Residual | None


@dataclass(frozen=True)
class Segment:
    """A part of the model that is run on its own.

    module:   a block, or "" for the whole model
    slot:     where the block takes the output of the one before
    follows:  whether it does take the output of the segment before
    """

    module: str
    groups: list[Group]
    slot: Slot | None = None
    follows: bool = False


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def trace(model: nn.Module, plan: Plan, batches: list[Batch]) -> list[Segment]:
    """Run the model and find the segments, in the order in which they run.

    The blocks of a stack are segments of their own if each runs once and takes, apart from the
    previous block's output, what the first block took. For all other layers the segment is the whole
    model: the same result at the cost of running the model for every group of layers.

    The model is run until all layers have been seen. An expert that no batch reaches is a group
    without calls. Another layer that does not run may be one whose weight the model reads without
    calling it: it is left, and named in `plan.left`.

    Raises UsageError if no layer runs.
    """
    modules = dict(model.named_modules())
    layers = {layer.name: layer for layer in plan.layers}
    calls: dict[str, list[_Call]] = defaultdict(list)
    groups: list[Group] = []
    blocks = {name: modules[name] for stack in plan.stacks for name in stack}
    for batch in batches:
        # Holding on to every tensor seen keeps their identities distinct.
        inputs: dict[str, list[Tensor]] = defaultdict(list)

        def see(name: str, args: Any, kwargs: Any, inputs: Any = inputs) -> None:
            inputs[name].append(linear_input(args, kwargs))

        with (
            before({name: layer.linear for name, layer in layers.items()}, see),
            after(
                {} if calls else blocks,
                lambda name, args, kwargs, output: calls[name].append(_Call(args, kwargs, output)),
            ),
            batch.running(model),
        ):
            model(*batch.args, **batch.kwargs)
        groups += _group(plan, layers, inputs)
        layers = {name: layer for name, layer in layers.items() if name not in inputs}
        if not layers:
            break
    if not groups:
        raise UsageError(
            f"{next(iter(layers))} did not run on the calibration inputs, nor did any other layer "
            "that is to be pruned; give inputs that reach them"
        )
    for name, layer in layers.items():
        if is_expert(name):
            groups.append(Group([layer], 0, None))
        else:
            plan.left[name] = IDLE
    slots = {}
    for stack in plan.stacks:
        slot = _chain([calls[name] for name in stack])  # as the first batch has it
        if slot is not None:
            slots.update(dict.fromkeys(stack, (slot, tuple(stack))))
    return _segments(plan, groups, slots)


def is_expert(name: str) -> bool:
    """Whether a layer belongs to one of several experts, which need not run for every text."""
    return "experts" in name.split(".")


def _segments(
    plan: Plan, groups: list[Group], chains: dict[str, tuple[Slot, tuple[str, ...]]]
) -> list[Segment]:
    """Blocks of a chain where its first group stands, and the whole model for groups outside."""
    inside: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        inside[plan.block_of(group.layers[0].name) or ""].append(group)
    segments: list[Segment] = []
    placed: set[str] = set()
    for group in groups:
        block = plan.block_of(group.layers[0].name)
        if block is None or block not in chains:
            if not segments or segments[-1].module:
                segments.append(Segment("", []))
            segments[-1].groups.append(group)
        elif block not in placed:
            slot, stack = chains[block]
            busy = [i for i, name in enumerate(stack) if inside[name]]
            part = stack[busy[0] : busy[-1] + 1]
            segments += [Segment(name, inside[name], slot, name != part[0]) for name in part]
            placed.update(stack)
    return segments


def _group(plan: Plan, layers: dict[str, Layer], inputs: dict[str, list[Tensor]]) -> list[Group]:
    """Layers by the tensors they read, in the order in which they run."""
    groups: dict[tuple[object, ...], list[Layer]] = defaultdict(list)
    for name, seen in inputs.items():
        # A layer that adds to a residual stream has a target of its own, hence a group of its own.
        own = name if name in plan.residuals else None
        groups[(plan.block_of(name), own, *map(id, seen))].append(layers[name])
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
