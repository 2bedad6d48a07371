"""The small files of a model folder: config, tokenizer and pooling.

From a package only files in the manifest are read; their hashes are checked, and links are not
followed. From a Hugging Face folder any regular file is read; links are followed, since the hub's
cache consists of links.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.io.companions import COMPANIONS, MAX_BYTES, Companion
from sparse_engine.io.folder import read_regular
from sparse_engine.io.foreign import plain_config
from sparse_engine.io.live_config import live_config
from sparse_engine.io.manifest import MANIFEST, FileEntry, read_folder_manifest
from sparse_engine.io.package import read_listed
from sparse_engine.io.tensorfile import read_json

CONFIG: Companion = "config.json"
Files = Mapping[Companion, bytes | None]
"""Companion files by name, in place of those of a folder; None for one that is left out."""


class ModelFiles:
    """Files of a folder by name ("tokenizer.json", "1_Pooling/config.json"), at most 64 MiB each.

    >>> ModelFiles("out").json("config.json")["model_type"]
    'bert'
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises InvalidFileError for a package whose manifest is damaged."""
        self.folder = Path(folder)
        self.listed: dict[str, FileEntry] | None = None
        if os.path.lexists(self.folder / MANIFEST):
            manifest = read_folder_manifest(self.folder)
            self.listed = {entry.name: entry for entry in manifest.files}

    def read(self, name: str) -> bytes | None:
        """All bytes of a file; None where there is none. Raises InvalidFileError."""
        path = self.folder / name
        if self.listed is None:
            return read_regular(path, MAX_BYTES)
        if name in self.listed:
            return read_listed(self.folder, self.listed[name])
        if os.path.lexists(path):
            raise InvalidFileError(f"{path}: is not among the files of {MANIFEST}")
        return None

    def json(self, name: str, kind: type = dict) -> Any:
        """The object (or `kind`) in a JSON file; None where there is no such file."""
        raw = self.read(name)
        return None if raw is None else read_json(raw, str(self.folder / name), kind)


def read_companions(source: Path) -> dict[Companion, bytes]:
    """All companion files of a model folder; config.json as a plain checkpoint has it.

    Raises:
        UsageError: `source` is not a folder.
        InvalidFileError: A file is too large or not a regular file.
    """
    if not source.is_dir():
        raise UsageError(f"source {source} is not a folder")
    files = ModelFiles(source)
    found = {name: files.read(name) for name in COMPANIONS}
    present = {name: data for name, data in found.items() if data is not None}
    if files.listed is None and CONFIG in present:
        present[CONFIG] = plain_config(present[CONFIG], str(source / CONFIG))
    return present


def companions_of(
    model: nn.Module, source: str | Path | None, files: Files | None = None
) -> dict[Companion, bytes]:
    """The files that are written beside a model.

    Args:
        model: If it has a config, config.json has its values.
        source: The folder that the model came from; None for no files.
        files: In place of those of `source`.

    Raises:
        UsageError: `source` is not a folder, or `files` has another name than a companion's.
        InvalidFileError: A file is too large or not a regular file.
    """
    given = {} if source is None else read_companions(Path(source))
    if unknown := sorted(set(files or {}) - set(COMPANIONS)):
        raise UsageError(f"{unknown[0]!r:.80} is no file of a model: {', '.join(COMPANIONS)}")
    found = {**given, **(files or {})}
    present = {name: data for name, data in found.items() if data is not None}
    config = getattr(model, "config", None)
    if CONFIG in present and hasattr(config, "to_dict"):
        present[CONFIG] = live_config(present[CONFIG], f"{source}/{CONFIG}", config)
    return present
