"""What the recipe of a package states about the model: which modules read the outputs of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.named import find
from sparse_engine.structures import STRUCTURES, Structure, stated_readers

MOST = 64
"""Steps of a recipe, and structures of a step, at most."""

KINDS = {cls.name for cls in STRUCTURES}


def readers_in(recipe: Any) -> dict[str, tuple[str, ...]]:
    """The modules that a recipe states to read others, by the names of these.

    Args:
        recipe: plain values: a recipe, or a report of `prune` that holds one; None for none. They
            come from a file, and what is no recipe states nothing.

    Raises:
        InvalidFileError: for a structure that cannot be read, or far too many.
    """
    values = recipe.get("recipe", recipe) if isinstance(recipe, dict) else {}
    steps = values.get("steps", [values]) if isinstance(values, dict) else []
    steps = steps if isinstance(steps, list) else []
    try:
        return stated_readers(structure for step in _bounded(steps) for structure in _of(step))
    except UsageError as error:
        raise InvalidFileError(f"its recipe cannot be read: {error}") from None


def _of(step: Any) -> Iterator[Structure]:
    granularity = step.get("granularity") if isinstance(step, dict) else None
    for text in _bounded(granularity if isinstance(granularity, list) else [granularity]):
        if isinstance(text, str) and text.partition("(")[0] in KINDS:
            yield find(text, STRUCTURES)


def _bounded(values: list[Any]) -> list[Any]:
    if len(values) > MOST:
        raise InvalidFileError(f"its recipe has {len(values)} steps or structures, at most {MOST}")
    return values
