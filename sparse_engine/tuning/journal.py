"""The folder of a run: its rounds and its best state, from which a killed run goes on.

    run.json                what was asked for, and all rounds that are complete
    round-003.safetensors   the best state; that of an earlier round is removed

Both are written under another name and then renamed. run.json names the state, and is written after
it, so that the two belong together at every moment.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.io.folder import new_file, open_inside, read_regular
from sparse_engine.io.tensorfile import (
    PAD,
    map_file,
    map_tensors,
    parse_json,
    read_header,
    write_tensors,
)
from sparse_engine.reporting.values import checked
from sparse_engine.tuning.rounds import Round
from sparse_engine.tuning.state import named_tensors, take_over

FILE = "run.json"
VERSION = 1
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Contents:
    """What run.json holds beside the request.

    Attributes:
        rounds: all that are complete.
        dense: the metric of the dense model.
        state: the name of the file with the best state; None if no round has passed.
    """

    rounds: list[Round]
    dense: Annotated[float, Field(strict=True)]
    state: str | None


def file_of(number: int) -> str:
    """The name of the file with the state after a round."""
    return f"round-{number:03}.safetensors"


class Journal:
    """What a run has written so far.

    Args:
        folder: of the run, which exists and is locked.
        request: what decides the result, as plain values.

    Raises:
        UsageError: if the folder is that of another run.
        InvalidFileError: if it is damaged.
    """

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        self._folder = folder
        self._request = json.loads(json.dumps(request))
        self.rounds: list[Round] = []
        self.dense: float | None = None
        self._state: str | None = None
        if (raw := read_regular(folder / FILE, MAX_BYTES)) is not None:
            self._read(parse_json(raw, str(folder / FILE)))
        elif strangers := [p.name for p in folder.iterdir() if not p.name.startswith(".")]:
            raise UsageError(f"{folder} is no folder of a run: it holds {strangers[0]}")

    def _read(self, values: dict[str, Any]) -> None:
        where = self._folder / FILE
        request = values.get("request")
        if values.get("version") != VERSION or not isinstance(request, dict):
            raise InvalidFileError(f"{where}: is no file of a run of this version")
        for key in sorted({*request, *self._request}):
            if request.get(key) != self._request.get(key):
                raise UsageError(
                    f"{self._folder} was begun with another {key}: give the same again, or another "
                    "folder"
                )
        found = checked(Contents, values, f"run in {where}")
        passed = [one.number for one in found.rounds if one.passed]
        if found.state != (file_of(passed[-1]) if passed else None):
            raise InvalidFileError(f"{where}: names no state of its rounds: name another folder")
        self.rounds, self.dense, self._state = found.rounds, found.dense, found.state

    def restore(self, model: nn.Module) -> None:
        """Give a dense model the best state of the run, if a round has passed.

        Raises:
            InvalidFileError: if the file is damaged, or of another model.
        """
        if self._state is None:
            return
        path = self._folder / self._state
        with open_inside(self._folder, self._state) as handle:
            slots = read_header(handle, path)
            tensors = map_tensors(map_file(handle), path, slots)
        stored = {name: tensor for name, tensor in tensors.items() if not name.startswith(PAD)}
        take_over(model, stored, str(path))

    def save(self, rounds: Sequence[Round], dense: float, model: nn.Module | None = None) -> None:
        """Write the rounds, and the state of the model if the last one has passed.

        Args:
            rounds: all that are complete.
            dense: the metric of the dense model.
            model: what the last round made; None if it failed.

        Raises:
            SparseEngineError: if a file cannot be written; what was written before is there still.
        """
        state = self._state
        if model is not None:
            state = file_of(len(rounds))
            with new_file(self._folder / state) as draft:
                write_tensors(draft, [*named_tensors(model)])
        values = {
            "version": VERSION,
            "request": self._request,
            "dense": dense,
            "rounds": [asdict(one) for one in rounds],
            "state": state,
        }
        with new_file(self._folder / FILE) as draft:
            draft.write_text(json.dumps(values, indent=1))
        if self._state not in (None, state):
            (self._folder / str(self._state)).unlink(missing_ok=True)
        self._state = state


@contextmanager
def open_journal(folder: str | Path | None, request: dict[str, Any]) -> Iterator[Journal | None]:
    """The journal of a folder, which is made if it does not exist; None without a folder.

    Raises:
        UsageError: if it is no path, or the folder of another run, or another process writes it.
        InvalidFileError: if it is damaged.
        SparseEngineError: if it cannot be made.
    """
    if folder is None:
        yield None
        return
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise UsageError(f"folder is {folder!r:.40}; give the path of one")
    path = Path(folder)
    try:
        path.mkdir(exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SparseEngineError(f"folder {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path} is being written by another process") from None
        yield Journal(path, request)
    finally:
        os.close(lock)
