"""Which layers of a checkpoint are pruned: those of its one stack."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.modules.linears import is_linear
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.plan import Plan, Selection, make_plan
from sparse_engine.pruning.plan.stacks import find_stacks
from sparse_engine.pruning.unrolled import kind_of

OUTSIDE = "outside of the stack, which alone is streamed"


def plan_stack(model: nn.Module, granularity: Granularity, selection: Selection) -> Plan:
    """The layers of the only stack of a model without weights.

    Raises:
        UnsupportedModelError: the model cannot be streamed.
        UsageError: no layer is pruned.
    """
    kind = type(model).__name__
    for name, module in model.named_modules():
        if kind_of(module) is not None:
            raise UnsupportedModelError(
                f"{kind} cannot be streamed: {name} ({type(module).__name__}) is no linear layer"
            )
    plan = make_plan(model, None, granularity, selection)
    stacks = [s for s in plan.stacks if any(is_inside(layer.name, s) for layer in plan.layers)]
    if len(stacks) != 1:
        raise UnsupportedModelError(
            f"{kind} cannot be streamed: it has {len(stacks)} stacks of layers, not one"
        )
    (stack,) = stacks
    check_unshared(model, stack)
    inside = [layer for layer in plan.layers if is_inside(layer.name, stack)]
    left = {layer.name: OUTSIDE for layer in plan.layers if not is_inside(layer.name, stack)}
    return replace(plan, layers=inside, stacks=[stack], left=plan.left | left)


def find_streamed(model: nn.Module) -> list[str]:
    """The modules of all stacks of a model, in order.

    Raises:
        UnsupportedModelError: it has none.
    """
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    names = [name for stack in find_stacks(model, linears) for name in stack]
    if not names:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be streamed: it has no stack of layers"
        )
    return names


def check_unshared(model: nn.Module, names: list[str]) -> None:
    """Raise UnsupportedModelError if a module shares a weight with another one."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name in names:
        for key, parameter in model.get_submodule(name).named_parameters(remove_duplicate=False):
            if uses[id(parameter)] > 1:
                raise UnsupportedModelError(
                    f"{type(model).__name__} cannot be streamed: {name}.{key} is shared with "
                    "another module"
                )


def is_inside(name: str, modules: list[str]) -> bool:
    """Whether a dotted name is that of one of these modules, or below it."""
    return f"{name}.".startswith(tuple(f"{module}." for module in modules))
