"""A dense forward pass that finds which layers share an input, and which modules form chains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.models import Residual
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.plan import DID_NOT_RUN, Layer, Plan
from sparse_engine.pruning.statistics.capture import (
    StopForward,
    forward_hooks,
    linear_input,
    pre_forward_hooks,
)

Argument = int | str  # position or name of an argument of forward


@dataclass(frozen=True)
class Group:
    """Layers that read the same input.

    Attributes:
        layers: in the order in which they run.
        calls: how often they run in one forward pass; 0 for an expert that no token reaches.
        residual: the residual stream that the only layer of the group writes to, if there is one.
    """

    layers: list[Layer]
    calls: int
    residual: Residual | None


@dataclass(frozen=True)
class Segment:
    """A part of the model that is run on its own.

    Attributes:
        module: the dotted name of a module of a stack, or "" for the whole model.
        groups: the groups of layers in it.
        argument: the argument that receives the output of the previous segment.
        follows: whether the previous segment is the one whose output this one receives.
    """

    module: str
    groups: list[Group]
    argument: Argument | None = None
    follows: bool = False


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def find_segments(model: nn.Module, plan: Plan, batches: list[Batch]) -> list[Segment]:
    """Run the model and find its segments, in the order in which they run.

    The modules of a stack become segments of their own if each of them runs once, and if its
    arguments are those of the first one, apart from the output of the previous one. For all other
    layers the segment is the whole model. Its result is the same, but the whole model runs for
    every group of layers.

    The model runs until every layer has been seen. An expert that no batch reaches becomes a group
    without calls. The model may read the weight of another layer without calling it: such a layer
    is left, and its reason is added to `plan.left`.

    Args:
        model: the unrolled, dense model.
        plan: the layers to find.
        batches: calibration inputs.

    Raises:
        UsageError: if no layer runs.
    """
    modules = dict(model.named_modules())
    layers = {layer.name: layer for layer in plan.layers}
    calls: dict[str, list[_Call]] = defaultdict(list)
    groups: list[Group] = []
    stacked = {name: modules[name] for stack in plan.stacks for name in stack}
    for batch in batches:
        # All tensors are kept until the end of the pass, so that their ids stay distinct.
        inputs: dict[str, list[Tensor]] = defaultdict(list)

        def on_linear(name: str, args: Any, kwargs: Any, inputs: Any = inputs) -> None:
            inputs[name].append(linear_input(args, kwargs))

        def on_stacked(name: str, args: Any, kwargs: Any, output: Any) -> None:
            calls[name].append(_Call(args, kwargs, output))

        with (
            pre_forward_hooks({name: layer.linear for name, layer in layers.items()}, on_linear),
            forward_hooks({} if calls else stacked, on_stacked),
            batch.naming_errors(model),
            suppress(StopForward),
        ):
            model(*batch.args, **batch.kwargs)
        groups += _group_by_input(plan, layers, inputs)
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
            plan.left[name] = DID_NOT_RUN
    chains: dict[str, tuple[Argument, tuple[str, ...]]] = {}
    for stack in plan.stacks:
        argument = _chain_argument([calls[name] for name in stack])  # in the first batch
        if argument is not None:
            chains.update(dict.fromkeys(stack, (argument, tuple(stack))))
    return _segments(plan, groups, chains)


def is_expert(name: str) -> bool:
    """Whether a layer belongs to one of several experts, which need not run for every text."""
    return "experts" in name.split(".")


def hidden_states(output: Any) -> Tensor | None:
    """The hidden states in a module's output: the output itself, or the first item of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def _segments(
    plan: Plan, groups: list[Group], chains: dict[str, tuple[Argument, tuple[str, ...]]]
) -> list[Segment]:
    """The modules of a chain at the place of its first group, the whole model for other groups."""
    by_module: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_module[plan.stack_module_of(group.layers[0].name) or ""].append(group)
    segments: list[Segment] = []
    placed: set[str] = set()
    for group in groups:
        module = plan.stack_module_of(group.layers[0].name)
        if module is None or module not in chains:
            if not segments or segments[-1].module:
                segments.append(Segment("", []))
            segments[-1].groups.append(group)
        elif module not in placed:
            argument, stack = chains[module]
            pruned = [i for i, name in enumerate(stack) if by_module[name]]
            part = stack[pruned[0] : pruned[-1] + 1]
            segments += [Segment(name, by_module[name], argument, name != part[0]) for name in part]
            placed.update(stack)
    return segments


def _group_by_input(
    plan: Plan, layers: dict[str, Layer], inputs: dict[str, list[Tensor]]
) -> list[Group]:
    """Group layers by the tensors that they read, in the order in which they run."""
    groups: dict[tuple[object, ...], list[Layer]] = defaultdict(list)
    for name, tensors in inputs.items():
        # A layer that writes to a residual stream has its own target, and so its own group.
        own = name if name in plan.residuals else None
        groups[(plan.stack_module_of(name), own, *map(id, tensors))].append(layers[name])
    return [
        Group(members, len(inputs[members[0].name]), plan.residuals.get(members[0].name))
        for members in groups.values()
    ]


def _chain_argument(modules: list[list[_Call]]) -> Argument | None:
    """The argument through which the modules of a stack pass on their output.

    None if a module runs more than once, or if more than this argument changes.
    """
    if not modules or any(len(calls) != 1 for calls in modules):
        return None
    first, *others = [calls[0] for calls in modules]
    if not others:
        tensors = (a for a, value in _arguments(first) if isinstance(value, Tensor))
        return next(tensors, None)
    candidates: set[Argument] = set()
    previous = first
    for call in others:
        states = hidden_states(previous.output)
        candidates.update(a for a, value in _arguments(call) if value is states)
        if states is None or len(candidates) != 1:
            return None
        if not _same_other_arguments(next(iter(candidates)), first, call):
            return None
        previous = call
    return candidates.pop()


def _arguments(call: _Call) -> Iterator[tuple[Argument, Any]]:
    yield from enumerate(call.args)
    yield from call.kwargs.items()


def _same_other_arguments(argument: Argument, a: _Call, b: _Call) -> bool:
    """Whether two calls have the same arguments, apart from one."""
    left, right = dict(_arguments(a)), dict(_arguments(b))
    return left.keys() == right.keys() and all(
        key == argument or _same(left[key], right[key]) for key in left
    )


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, int | float | str) and type(a) is type(b) and a == b
