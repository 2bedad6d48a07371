"""Measurements of format="auto" on this machine, stored in the user's cache folder.

They are one JSON file. A missing or unreadable file counts as empty, since everything in it can be
measured again. SPARSE_ENGINE_CACHE names another folder; an empty value turns the cache off.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_ENTRIES = 4096


@dataclass(frozen=True)
class Measurement:
    """What was measured for one weight.

    Attributes:
        times_us: microseconds by format and token count; also of "dense".
        nbytes: bytes of the packed weight by format; also of "dense".
    """

    times_us: dict[str, dict[int, float]]
    nbytes: dict[str, int]


def cache_file() -> Path | None:
    """The file of the cache, or None if it is off."""
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


def load(key: dict[str, Any]) -> Measurement | None:
    """The measurement stored for `key`, or None if there is none or it is incomplete.

    Args:
        key: what must be equal for the measurement to hold; has "formats" and "tokens".
    """
    path = cache_file()
    entry = _read(path).get(_text(key)) if path else None
    try:
        times = {
            str(spec): {int(tokens): float(micros) for tokens, micros in row.items()}
            for spec, row in entry["times_us"].items()  # type: ignore[index]
        }
        sizes = entry["nbytes"].items()  # type: ignore[index]
        nbytes = {str(spec): int(size) for spec, size in sizes}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    specs = {"dense", *key["formats"]}
    complete = set(times) == set(nbytes) == specs and all(
        set(row) == set(key["tokens"]) and all(0 < micros < 1e12 for micros in row.values())
        for row in times.values()
    )
    return Measurement(times, nbytes) if complete else None


def store(key: dict[str, Any], measurement: Measurement) -> None:
    """Store `measurement` for `key`; does nothing where the folder cannot be written."""
    path = cache_file()
    if path is None:
        return
    entries = _read(path)
    entries.pop(_text(key), None)
    entries[_text(key)] = asdict(measurement)
    while len(entries) > MAX_ENTRIES:  # the oldest goes first
        entries.pop(next(iter(entries)))
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(entries))
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            draft.unlink()


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
