"""How many blocks each stack loses, and which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparse_engine.errors import UsageError
from sparse_engine.pruning.cutting.blocks.criteria import Costs
from sparse_engine.pruning.cutting.blocks.method import BlockMethod
from sparse_engine.pruning.plan import Selection
from sparse_engine.structures import Stack


@dataclass(frozen=True)
class Removable:
    """Blocks of a stack that may go.

    Attributes:
        stack: the stack.
        blocks: those that may go.
        most: how many of them go at the most.
    """

    stack: Stack
    blocks: tuple[str, ...]
    most: int


@dataclass(frozen=True)
class Quota:
    """How many blocks go.

    Attributes:
        stacks: all stacks that lose blocks, and at the most how many.
        total: of all stacks together.
    """

    stacks: tuple[Removable, ...]
    total: int


def quota(
    stacks: Sequence[Stack], method: BlockMethod, selection: Selection, others: Sequence[str]
) -> Quota:
    """How many blocks go.

    Args:
        stacks: of the model.
        method: what is removed.
        selection: which blocks may go.
        others: names of all modules; to ignore them is no mistake.

    Raises:
        UsageError: if there is no block to remove, none would go, or too many.
    """
    names = [block for stack in stacks for block in stack.blocks]
    left = selection.left(names, others, {})
    found = []
    for stack in stacks:
        blocks = tuple(block for block in stack.blocks if block not in left)
        if blocks:
            found.append(Removable(stack, blocks, _most(stack, blocks, method)))
    if not found:
        raise UsageError("every layer of this model is ignored: there is none to remove")
    sizes = [len(item.stack.blocks) for item in found]
    at_first = [
        method.original.get(item.stack.name, size) for item, size in zip(found, sizes, strict=True)
    ]
    if method.competing:
        total = _wanted(sum(sizes), sum(at_first), method)
        _check(total, sum(item.most for item in found), sum(sizes), "the model", method)
        return Quota(tuple(found), total)
    wanted = [_wanted(*of, method) for of in zip(sizes, at_first, strict=True)]
    for item, count in zip(found, wanted, strict=True):
        _check(count, item.most, len(item.stack.blocks), item.stack.name, method)
    own = (Removable(i.stack, i.blocks, n) for i, n in zip(found, wanted, strict=True))
    return Quota(tuple(own), sum(wanted))


def choose(quota: Quota, costs: Costs, chosen: Callable[[str], None]) -> list[str]:
    """The blocks to remove, one after another the cheapest.

    Args:
        quota: how many.
        costs: of removals.
        chosen: receives each block.
    """
    removed: list[str] = []
    left = {item.stack.name: item.most for item in quota.stacks}
    for _ in range(quota.total):
        candidates = [
            (item.stack.name, block)
            for item in quota.stacks
            if left[item.stack.name]
            for block in item.blocks
            if block not in removed
        ]
        found = costs(removed, [block for _, block in candidates])
        stack, block = candidates[found.index(min(found))]
        left[stack] -= 1
        removed.append(block)
        chosen(block)
    return removed


def _most(stack: Stack, blocks: Sequence[str], method: BlockMethod) -> int:
    return min(len(blocks), max(len(stack.blocks) - method.structure.keep, 0))


def _wanted(size: int, at_first: int, method: BlockMethod) -> int:
    if method.structure.count is not None:
        return method.structure.count
    assert method.sparsity is not None
    return max(size - method.structure.kept(at_first, at_first * (1 - method.sparsity)), 0)


def _check(wanted: int, most: int, size: int, where: str, method: BlockMethod) -> None:
    """Raise UsageError unless some blocks go, and not too many."""
    if wanted == 0 and method.original:
        return
    if most == 0:
        raise UsageError(f"{where} keeps its last layers: none of {size} can be removed")
    if wanted == 0:
        raise UsageError(
            f"sparsity {method.sparsity} removes none of the {size} layers of {where}; "
            f"{1 / size:.2g} removes one"
        )
    if wanted > most:
        raise UsageError(
            f"{wanted} of the {size} layers of {where} cannot be removed: {most} may go, "
            f"and {method.structure.keep} stays"
        )
