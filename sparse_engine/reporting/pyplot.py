"""matplotlib, imported at its first use, and files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from sparse_engine.errors import UsageError


def load_pyplot() -> Any:
    """matplotlib.pyplot without a display, or a UsageError naming the extra."""
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install sparse-engine[plot]") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def check_output(path: Path, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse, before any work is done, a picture or page that could not be written afterwards.

    Args:
        path: the file to write.
        option: the name of the option or argument, for the message.
        suffixes: the endings of names that are possible, as (".html",).

    Raises:
        UsageError: matplotlib is missing, the name has another ending, there is no such folder, or
            no file can be made in it.
    """
    load_pyplot()
    if path.suffix not in suffixes:
        *first, last = suffixes
        names = f"{', '.join(first)} or {last}" if first else last
        raise UsageError(f"{option} {path}: name a {names} file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path}: {path.absolute().parent} is not a folder")
    if path.is_dir():
        raise UsageError(f"{option} {path}: it is a folder; name a file")
    draft = _draft_of(path)
    try:
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it: it appears complete, or not at all."""
    draft = _draft_of(path)
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _draft_of(path: Path) -> Path:
    """A new name beside a file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
