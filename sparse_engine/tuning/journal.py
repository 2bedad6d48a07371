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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.io.folder import new_file, read_regular
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
        rounds, dense, state = (values.get(name) for name in ("rounds", "dense", "state"))
        is_name = state is None or (isinstance(state, str) and Path(state).name == state)
        if not isinstance(rounds, list) or not isinstance(dense, int | float) or not is_name:
            raise InvalidFileError(f"{where}: is damaged: name another folder")
        if not all(isinstance(one, dict) for one in rounds):
            raise InvalidFileError(f"{where}: is damaged: name another folder")
        self.rounds = [checked(Round, one, f"round of {where}") for one in rounds]
        self.dense, self._state = float(dense), state

    def restore(self, model: nn.Module) -> None:
        """Give a dense model the best state of the run, if a round has passed.

        Raises:
            InvalidFileError: if the file is damaged, or of another model.
        """
        if self._state is None:
            return
        path = self._folder / self._state
        try:
            with path.open("rb") as file:
                slots = read_header(file.fileno(), path)
                tensors = map_tensors(map_file(file.fileno()), path, slots)
        except OSError as error:
            raise InvalidFileError(f"{path}: {error.strerror}: name another folder") from None
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
            state = f"round-{len(rounds):03}.safetensors"
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
        UsageError: if the folder is that of another run, or another process writes it.
        InvalidFileError: if it is damaged.
        SparseEngineError: if it cannot be made.
    """
    if folder is None:
        yield None
        return
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
