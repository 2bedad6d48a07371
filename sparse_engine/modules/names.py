"""Dotted names of modules and parameters."""

from __future__ import annotations


def prefixes(name: str) -> list[str]:
    """The names of a module and of those that contain it, outermost first, without the model's "".

    >>> prefixes("encoder.layers.0")
    ['encoder', 'encoder.layers', 'encoder.layers.0']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def join(path: str, name: str) -> str:
    """The full name of what is called `name` below the module `path`; either may be ""."""
    return f"{path}.{name}".strip(".")
