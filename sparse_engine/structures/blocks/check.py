"""Whether blocks can be removed: each is a module of its own, with weights of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.structures.blocks.stack import Stack


def check_removable(model: nn.Module, stacks: Sequence[Stack]) -> None:
    """Raise UsageError if a block shares a module or a weight with another one, or with others."""
    for stack in stacks:
        owners: dict[int, str] = {}
        for block in stack.blocks:
            for name, module in model.get_submodule(block).named_modules(prefix=block):
                for item in (module, *module._parameters.values()):
                    if item is None:
                        continue
                    if owners.setdefault(id(item), block) != block:
                        raise UsageError(
                            f"{owners[id(item)]} and {block} share {name}: layers that share "
                            "weights cannot be removed"
                        )
        inside = tuple(f"{block}." for block in stack.blocks)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) in owners and not name.startswith(inside):
                raise UsageError(
                    f"{name} is also a weight of {owners[id(parameter)]}: layers that share "
                    "weights cannot be removed"
                )
