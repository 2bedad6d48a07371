"""Stack: an nn.ModuleList whose blocks can be removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FirstOnly:
    """A module that only the first block of a stack has, such as the position biases of T5.

    Attributes:
        module: dotted name, inside a block, of the module that holds it.
        child: its name there.
        flag: attribute of that module which tells whether it holds it.
    """

    module: str
    child: str
    flag: str


@dataclass(frozen=True, eq=False)
class Stack:
    """Blocks that run one after another, each on the hidden states of the one before.

    The hidden states are the first argument of a block, and its output or the first item of it.

    Attributes:
        name: dotted name of the nn.ModuleList.
        blocks: dotted names of the blocks, in the order in which they run.
        counts: objects with an attribute that is the number of blocks, and its name.
        lists: objects with an attribute that is a list with an item for each block, and its name.
        flags: objects with an attribute that tells whether an item is in these lists, its name, and
            the item.
        first_only: what only the first block has.
    """

    name: str
    blocks: tuple[str, ...]
    counts: tuple[tuple[Any, str], ...]
    lists: tuple[tuple[Any, str], ...] = ()
    flags: tuple[tuple[Any, str, str], ...] = ()
    first_only: FirstOnly | None = None
