"""The folder of a run that is not finished, from which an interrupted run continues.

OUT.unfinished/
    state.json   the request, what is done, and where the calibration states are
    states/      calibration states; of a conversion, the packages of single modules
    scoring/     calibration states while an allocator reads the dense model
    model/       the checkpoint; it is renamed to OUT at the end
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.io.folder import check_free
from sparse_engine.io.tensorfile import parse_json

STATE = "state.json"


def unfinished(target: Path) -> Path:
    """The folder of an unfinished run that writes `target`."""
    return target.absolute().with_name(f"{target.name}.unfinished")


class Draft:
    """An unfinished run.

    Attributes:
        path: its folder.
        state: what is done, as plain values; empty for a new run.
    """

    def __init__(self, path: Path, request: dict[str, Any], state: dict[str, Any]) -> None:
        self.path = path
        self._request = request
        self.state = state

    @property
    def model(self) -> Path:
        """The folder of the checkpoint that is being written."""
        return self.path / "model"

    @property
    def states(self) -> Path:
        """The folder of the calibration states."""
        return self.path / "states"

    @contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """An empty folder for the time of a `with` block."""
        folder = self.path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state on the disk, atomically."""
        self.state = state
        text = json.dumps({"request": self._request, "state": state})
        part = self.path / f"{STATE}.part"
        with open(part, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path / STATE)

    def finish(self, target: Path) -> None:
        """Flush the checkpoint, rename it to `target`, and remove the rest."""
        for path in (*self.model.rglob("*"), self.model):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        check_free(target)
        os.rename(self.model, target)
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def open_draft(target: Path, request: dict[str, Any]) -> Iterator[Draft]:
    """A new run that writes `target`, or the unfinished one that had the same request.

    An error before anything was saved removes the folder; later ones leave it.

    Args:
        target: the folder to write at the end.
        request: what decides the result, as plain values.

    Raises:
        UsageError: `target` exists, another process writes it, or the request is another one.
        InvalidFileError: the state of the unfinished run is damaged.
        SparseEngineError: the files cannot be written.
    """
    check_free(target)
    path = unfinished(target)
    try:
        path.mkdir(exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from _locked(path, lock, request)
        finally:
            os.close(lock)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SparseEngineError(f"cannot write {path}: {reason}") from error


def _locked(path: Path, lock: int, request: dict[str, Any]) -> Iterator[Draft]:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path} is being written by another process") from None
    draft = Draft(path, request, _read_state(path, request))
    try:
        draft.model.mkdir(exist_ok=True)
        draft.states.mkdir(exist_ok=True)
        if not draft.state:
            draft.save({})  # from here on the folder belongs to this request
        yield draft
    except BaseException:
        if not draft.state:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _read_state(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The state of an unfinished run; empty for a new folder."""
    where = path / STATE
    if not where.is_file():
        if any(found.name not in ("model", "states", f"{STATE}.part") for found in path.iterdir()):
            raise UsageError(f"{path} exists and is no unfinished run: remove it")
        return {}
    try:
        stored = parse_json(where.read_bytes(), str(where))
    except InvalidFileError as error:
        raise InvalidFileError(f"{error}: remove {path}") from None
    before, state = stored.get("request"), stored.get("state")
    if not isinstance(before, dict) or not isinstance(state, dict):
        raise InvalidFileError(f"{where}: is damaged: remove {path}")
    for key in sorted({*before, *request}):
        if before.get(key) != request.get(key):
            values = f" ({_short(before.get(key))}, now {_short(request.get(key))})"
            raise UsageError(
                f"{path} was begun with another {key}{values}: give the same again, or remove it"
            )
    return state


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
