"""Packages that are needed for serving only."""

from __future__ import annotations

import importlib

from sparse_engine.errors import UsageError


def need(*packages: str) -> None:
    """Import each package; raise UsageError with the install command of the first missing one."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f"serving needs {package}: pip install sparse-engine[serve]"
            ) from error
