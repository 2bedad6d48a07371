"""What format="auto" has measured on this machine, kept in the user's cache folder.

One JSON file; a missing or unreadable one counts as empty, since everything in it can be measured
again. SPARSE_ENGINE_CACHE names another folder; an empty value turns the memory off.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

Times = dict[str, dict[int, float]]

MAX_ENTRIES = 4096


def cache_file() -> Path | None:
    """Where measurements are kept, or None if they are not."""
    folder = os.environ.get("SPARSE_ENGINE_CACHE")
    if folder == "":
        return None
    if folder is None:
        try:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            return None
        folder = str(Path(base) / "sparse_engine")
    return Path(folder) / "choices.json"


def recall(key: dict[str, Any]) -> Times | None:
    """Microseconds by format and token count that were measured for `key`, or None."""
    path = cache_file()
    found = _read(path).get(_text(key)) if path else None
    try:
        times = {
            str(spec): {int(tokens): float(micros) for tokens, micros in row.items()}
            for spec, row in found.items()  # type: ignore[union-attr]
        }
        wanted = {"dense", *key["formats"]}
        complete = set(times) == wanted and all(
            set(row) == set(key["tokens"]) and all(0 < micros < 1e12 for micros in row.values())
            for row in times.values()
        )
        return times if complete else None
    except (AttributeError, TypeError, ValueError):
        return None


def remember(key: dict[str, Any], times: Times) -> None:
    """Keep `times` for `key`; quietly does nothing where the folder cannot be written."""
    path = cache_file()
    if path is None:
        return
    known = _read(path)
    known.pop(_text(key), None)
    known[_text(key)] = times
    while len(known) > MAX_ENTRIES:  # the oldest goes first
        known.pop(next(iter(known)))
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(known))
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            draft.unlink()


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
