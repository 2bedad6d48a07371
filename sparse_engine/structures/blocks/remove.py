"""Takes blocks out of stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparse_engine.structures.blocks.stack import FirstOnly, Stack

NUMBER = "layer_idx"  # attribute of modules that read the cache of their block


@dataclass(frozen=True)
class _Change:
    """A new value of an attribute."""

    owner: Any
    attribute: str
    value: Any


def remove_blocks_(
    model: nn.Module, kept: Mapping[str, Sequence[int]], stacks: Sequence[Stack]
) -> None:
    """Keep some blocks of stacks; lists, configs and numbers of blocks follow.

    Args:
        model: the model in which the stacks were found; `check_removable` has passed.
        kept: by the name of a stack, the numbers of the blocks that remain, ascending; at least
            one.
        stacks: those that are named; others stay as they are.
    """
    changes = [
        change
        for stack in stacks
        if stack.name in kept
        for change in _changes(model, stack, kept[stack.name])
    ]
    for change in changes:
        setattr(change.owner, change.attribute, change.value)


def _changes(model: nn.Module, stack: Stack, kept: Sequence[int]) -> list[_Change]:
    """What changes in a stack."""
    blocks = [model.get_submodule(stack.blocks[i]) for i in kept]
    children = {str(i): block for i, block in enumerate(blocks)}
    changes = [_Change(model.get_submodule(stack.name), "_modules", children)]
    changes += [_Change(owner, count, len(kept)) for owner, count in stack.counts]
    for owner, attribute in stack.lists:
        items = getattr(owner, attribute)
        left = type(items)(items[i] for i in kept)
        changes.append(_Change(owner, attribute, left))
        changes += [_Change(flagged, flag, item in left) for flagged, flag, item in stack.flags]
    for new, (old, block) in enumerate(zip(kept, blocks, strict=True)):
        changes += [
            _Change(module, NUMBER, new)
            for module in block.modules()
            if module.__dict__.get(NUMBER) == old
        ]
    if stack.first_only is not None and kept[0] != 0:
        first = model.get_submodule(stack.blocks[0])
        changes += _moved(stack.first_only, first, blocks[0])
    return changes


def _moved(what: FirstOnly, old: nn.Module, new: nn.Module) -> list[_Change]:
    """The new first block gets what only the first one has."""
    holder, receiver = old.get_submodule(what.module), new.get_submodule(what.module)
    children = {**receiver._modules, what.child: holder._modules[what.child]}
    return [_Change(receiver, "_modules", children), _Change(receiver, what.flag, True)]
