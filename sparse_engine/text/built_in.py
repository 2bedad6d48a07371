"""Calibration texts that every machine has: English prose of Python's and torch's documentation.

Only files of the Python installation and of torch are read; nothing is imported or run. The same
versions give the same texts on every machine.
"""

from __future__ import annotations

import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
MARKUP = re.compile(r"[*`]")
# Code, tables and addresses are no prose.
NO_PROSE = re.compile(r"::|>>>|\.\.\.|https?:|[{}\\|<>=_\[\]]")
LETTERS = 0.88  # least share of letters and spaces
WORDS = range(4, 61)  # of a sentence
PASSAGE = 600  # characters, some 130 tokens


@dataclass(frozen=True)
class BuiltInTexts:
    """Sentences, paragraphs of several sentences as passages, and where they come from.

    `documents` has the kind of document of each sentence: language, library, torch or licence.
    """

    sentences: tuple[str, ...]
    documents: tuple[str, ...]
    passages: tuple[str, ...]
    detail: str


@cache
def built_in_texts() -> BuiltInTexts:
    """Sentences and passages without repetition, in a fixed order."""
    paragraphs: dict[tuple[str, ...], str] = {}
    for kind, text in _documents():
        for paragraph in _paragraphs(text):
            paragraphs.setdefault(paragraph, kind)
    sentences: dict[str, str] = {}
    for paragraph, kind in paragraphs.items():
        for sentence in paragraph:
            sentences.setdefault(sentence, kind)
    detail = (
        f"documentation of Python {platform.python_version()} and torch {version('torch')}, "
        "and licences"
    )
    passages = tuple(_passages(paragraphs))
    return BuiltInTexts(tuple(sentences), tuple(sentences.values()), passages, detail)


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of a text that are prose; blank lines separate its paragraphs."""
    for sentences in _paragraphs(text):
        yield from sentences


def _paragraphs(text: str) -> Iterator[tuple[str, ...]]:
    """The sentences of each paragraph that has any."""
    for paragraph in re.split(r"\n\s*\n", text):
        plain = MARKUP.sub("", " ".join(paragraph.split()))
        sentences = tuple(filter(_is_prose, SENTENCE_END.split(plain)))
        if sentences:
            yield sentences


def _documents() -> Iterator[tuple[str, str]]:
    """Language reference, docstrings of the standard library and of torch.nn, and licences.

    Each text comes with its kind of document.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield "language", topics[name]
    library = Path(sysconfig.get_path("stdlib"))
    spec = find_spec("torch")
    torch = Path(spec.origin).parent if spec and spec.origin else library / "no torch"
    folders = [(library / name, "library") for name in ("", "asyncio", "email")]
    for folder, kind in (*folders, (torch / "nn" / "modules", "torch")):
        for path in sorted(folder.glob("*.py")):
            for text in DOCSTRING.findall(path.read_text(encoding="utf-8", errors="replace")):
                yield kind, text
    for path in (library / "LICENSE.txt", *sorted(Path("/usr/share/common-licenses").glob("*"))):
        if path.is_file():
            yield "licence", path.read_text(encoding="utf-8", errors="replace")


def _is_prose(sentence: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return (
        len(sentence.split()) in WORDS
        and letters >= LETTERS * len(sentence)
        and not NO_PROSE.search(sentence)
    )


def _passages(paragraphs: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Sentences that follow each other, joined up to PASSAGE characters."""
    passage = ""
    for sentences in paragraphs:
        for sentence in sentences:
            if passage and len(passage) + len(sentence) >= PASSAGE:
                yield passage
                passage = ""
            passage = f"{passage} {sentence}".strip()
    if passage:
        yield passage
