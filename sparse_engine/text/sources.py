"""Where calibration texts come from: files of one text a line, and the built-in texts, with shares.

"FILE" and "FILE:SHARE" name a source. The last colon separates a share only if no file of the whole
name exists and a number follows, so that a path may hold colons. "default" is the built-in texts;
a file of that name is "./default".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparse_engine.errors import UsageError
from sparse_engine.text.built_in import built_in_texts

DEFAULT, NONE = "default", "none"
MAX_BYTES = 256 << 20
"""Of a file: calibration uses a few hundred texts."""


@dataclass(frozen=True)
class Source:
    """Texts to draw from.

    Attributes:
        name: of the file, or "default".
        texts: without repetition.
        passages: the same as longer texts, for models that generate; `texts` where empty.
        share: part of the calibration texts that come from here, over the sum of all shares.
        detail: what the texts are, if the name does not say it.
        variable: whether words of the texts may be replaced by others.
    """

    name: str
    texts: tuple[str, ...]
    passages: tuple[str, ...] = ()
    share: float = 1.0
    detail: str = ""
    variable: bool = False


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Read the sources that "FILE", "FILE:SHARE" and "default" name; without shares all are equal.

    "none" alone is no source.

    Raises:
        UsageError: if a file cannot be read or holds no text or is named twice, a share is no
            positive number, or some of several sources have a share and others have none.
    """
    named = [_split(argument) for argument in arguments]
    without = [name for name, share in named if share is None]
    if without and len(without) < len(named):
        raise UsageError(f"{without[0]} has no share: give one to every calibration file, or none")
    if NONE in without and len(named) > 1:
        raise UsageError("calibration 'none' stands alone; leave it out, or leave the files out")
    names = [name for name, _ in named]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"calibration {twice} is there twice: give it once, with one share")
    if NONE in without:
        return []
    return [replace(_source(name), share=share or 1.0) for name, share in named]


def _split(argument: str) -> tuple[str, float | None]:
    """The name and the share of "NAME:SHARE"."""
    if Path(argument).exists():
        return argument, None
    name, _, tail = argument.rpartition(":")
    try:
        share = float(tail)
    except ValueError:
        return argument, None
    if not name:
        raise UsageError(f"calibration {argument!r} is a share without a file; give FILE:SHARE")
    if not (math.isfinite(share) and share > 0):
        raise UsageError(f"calibration {argument!r}: a share is a positive number, as in FILE:0.5")
    return name, share


def _source(name: str) -> Source:
    if name == DEFAULT:
        return built_in_source()
    return Source(name, tuple(dict.fromkeys(read_texts(Path(name)))))


def built_in_source() -> Source:
    """The texts that every machine has."""
    found = built_in_texts()
    return Source(DEFAULT, found.sentences, found.passages, detail=found.detail, variable=True)


def read_texts(path: Path, what: str = "calibration file") -> list[str]:
    """Read the lines of a UTF-8 file, without blank ones.

    A line may hold a text, a tab and an answer. `what` names the file in messages.

    Raises:
        UsageError: if the file cannot be read, is too large, is not UTF-8 or holds no text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not UTF-8 text: {error.reason}") from error
    if len(raw) > MAX_BYTES:
        raise UsageError(
            f"{what} {path} has over {MAX_BYTES >> 20} MiB; a few thousand lines are "
            "enough, as of shuf -n 5000"
        )
    if "\0" in text:
        raise UsageError(f"{what} {path} is not text: it holds NUL bytes")
    texts = [line.strip() for line in text.splitlines() if line.strip()]
    if not texts:
        raise UsageError(f"{what} {path} holds no text: write one text a line")
    return texts
