"""Dotted names of layers as block and role: encoder.layer.3, attention.self.query."""

from __future__ import annotations

from collections.abc import Iterable


def split_name(name: str) -> tuple[str, str]:
    """The block of a layer, up to the first number in its name, and its role in the block.

    A name without a number has no block. Numbers at the end of a role are left out: the experts of
    a block have one role.

    >>> split_name("encoder.layer.3.attention.self.query")
    ('encoder.layer.3', 'attention.self.query')
    """
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
    block, role = parts[: at + 1], parts[at + 1 :]
    while role and role[-1].isdigit():
        role.pop()
    return ".".join(block), ".".join(role)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each dotted name with its shortest end that no other name has.

    >>> short_names(["attention.self.query", "attention.output.dense", "output.dense"])
    {'attention.self.query': 'query', 'attention.output.dense': 'attention.output.dense', \
'output.dense': 'output.dense'}
    """
    listed = list(dict.fromkeys(names))
    ends: dict[str, int] = {}
    for name in listed:
        for end in _ends(name):
            ends[end] = ends.get(end, 0) + 1
    return {name: next((e for e in _ends(name) if ends[e] == 1), name) for name in listed}


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]
