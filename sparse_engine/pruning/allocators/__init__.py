"""Allocators: how much of each layer is removed. A new one is a file and an entry in ALLOCATORS."""

from __future__ import annotations

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators.base import Allocator
from sparse_engine.pruning.allocators.lamp import Lamp
from sparse_engine.pruning.allocators.uniform import Uniform

ALLOCATORS: tuple[type[Allocator], ...] = (Uniform, Lamp)


def find_allocator(scope: str) -> Allocator:
    """Return the allocator of a scope, "local" or "global".

    Raises:
        UsageError: if the scope is unknown.
    """
    for known in ALLOCATORS:
        if known.scope == scope:
            return known()
    names = " or ".join(repr(known.scope) for known in ALLOCATORS)
    raise UsageError(f"scope {scope!r} is not known; choose {names}")
