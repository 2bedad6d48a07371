"""Texts to train on: the parts of a folder, or the built-in text that every machine has."""

from __future__ import annotations

import csv
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.text.built_in import built_in_texts

# What the names of the files of each part hold; the first that fits counts.
PARTS = {"test": ("test",), "valid": ("valid", "dev", "trial"), "train": ("train", "")}
WORD = re.compile(r"\w+|[^\w\s]")
MAX_BYTES = 2**28
FOLDS = 10


@dataclass(frozen=True)
class Parts:
    """Rows of a data set, each in the form of its task.

    Attributes:
        train, valid, test: the rows of each part.
        source: where they come from, in a few words.
    """

    train: list[Any]
    valid: list[Any]
    test: list[Any]
    source: str

    def map(self, function: Callable[[Any], Any]) -> Parts:
        """The parts with a function applied to every row."""
        parts = ([function(row) for row in part] for part in (self.train, self.valid, self.test))
        return Parts(*parts, self.source)


def split(
    rows: Sequence[Any], source: str, limit: int | None, drawn: bool = True, fold: int = 0
) -> Parts:
    """A tenth of the rows for validation and a tenth for the test.

    Args:
        rows: of the whole text.
        source: where they come from.
        limit: most rows, all parts together; None for all.
        drawn: by chance, with a fixed seed; otherwise in their order.
        fold: which tenth is the test, from 0; the next one is for validation. The tests of all ten
            together are every row once, for cross-validation.
    """
    rows = list(rows)
    if drawn:
        random.Random(0).shuffle(rows)
    rows = rows[:limit]
    if len(rows) < 3:
        raise UsageError(f"{source}: {len(rows)} rows are too few for three parts")
    if len(rows) < FOLDS:
        return Parts(rows[2:], rows[1:2], rows[:1], source)
    bounds = [len(rows) * i // FOLDS for i in range(FOLDS + 1)]
    tenths = [rows[a:b] for a, b in itertools.pairwise(bounds)]
    tenths = tenths[fold:] + tenths[:fold]
    train = list(itertools.chain.from_iterable(tenths[2:]))
    return Parts(train, tenths[1], tenths[0], source)


def read_parts(
    folder: Path, read: Any, limit: int | None, drawn: bool = True, fold: int = 0
) -> Parts:
    """The parts of a folder, by the names of its files.

    A file whose name holds "test" is the test; "valid", "dev" or "trial" is for validation; the
    largest of the others is for training. Parts without a file are tenths of the training file.

    Args:
        folder: of the files.
        read: read(lines) yields the rows of a file.
        limit: most rows of each part; None for all.
        drawn: whether tenths are drawn by chance; otherwise they are in the order of the file.
        fold: of `split`, for a folder of one file.

    Raises:
        UsageError: if there is no file.
        InvalidFileError: if a file has no rows, or is larger than MAX_BYTES.
    """
    if not folder.is_dir():
        raise UsageError(f"--data {folder}: is not a folder")
    files: dict[str, Path] = {}
    found = sorted(folder.iterdir(), key=lambda path: -path.stat().st_size)
    for path in found:
        if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
            part = next(p for p, words in PARTS.items() if any(w in path.name for w in words))
            files.setdefault(part, path)
    if "train" not in files:
        raise UsageError(f"--data {folder}: has no file to train on")
    rows = {part: _rows(path, read) for part, path in files.items()}
    if len(rows) == 1:
        return split(rows["train"], folder.name, limit, drawn, fold)
    if "valid" not in rows or "test" not in rows:
        parts = split(rows["train"], folder.name, None, drawn)
        missing = "valid" if "test" in rows else "test"
        rows[missing], rows["train"] = parts.test, parts.valid + parts.train
    return Parts(rows["train"][:limit], rows["valid"][:limit], rows["test"][:limit], folder.name)


def _rows(path: Path, read: Any) -> list[Any]:
    if path.stat().st_size > MAX_BYTES:
        raise InvalidFileError(f"{path}: is larger than {MAX_BYTES} bytes")
    raw = path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    try:
        # splitlines would also end lines at U+0085, which old texts have for an ellipsis.
        rows = list(read(text.replace("\r\n", "\n").split("\n")))
    except (KeyError, ValueError) as error:
        raise InvalidFileError(f"{path}: not in the form of this task: {error}") from error
    if not rows:
        raise InvalidFileError(f"{path}: has no rows")
    return rows


def sentences(lines: Sequence[str]) -> Iterator[list[str]]:
    """Words of each line that has any."""
    yield from filter(None, (line.split() for line in lines))


def labelled(lines: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Words and label of lines "LABEL words"."""
    for line in filter(str.strip, lines):
        label, _, text = line.partition(" ")
        if not text.strip():
            raise ValueError(f"expected a label, a space and words, not {line[:40]!r}")
        yield text.split(), label


def tagged(lines: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tags of lines "word<tab>tag"; an empty line ends a sentence."""
    words: list[str] = []
    tags: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            word, tab, tag = line.partition("\t")
            if not tab:
                raise ValueError(f"expected a word, a tab and a tag, not {line[:40]!r}")
            words.append(word.strip() or "[UNK]")
            tags.append(tag.strip())
        elif words:
            yield words, tags
            words, tags = [], []


def pairs(lines: Sequence[str]) -> Iterator[tuple[list[str], list[str], str]]:
    """Both texts and the label of a table with a header, as SICK has it."""
    for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        first, second = row["sentence_A"], row["sentence_B"]
        yield first.split(), second.split(), row["entailment_judgment"]


def built_in_sentences() -> list[list[str]]:
    """Words of the built-in text, in lower case, with punctuation apart."""
    return [WORD.findall(sentence.lower()) for sentence in built_in_texts().sentences]


def built_in_labelled() -> list[tuple[list[str], str]]:
    """Sentences of the built-in text and the kind of document that each comes from."""
    found = built_in_texts()
    words = (WORD.findall(sentence.lower()) for sentence in found.sentences)
    return list(zip(words, found.documents, strict=True))


def built_in_tagged() -> list[tuple[list[str], list[str]]]:
    """Sentences in lower case, and how each word was written: O, B-Capital or B-UPPER."""
    rows = []
    for sentence in built_in_texts().sentences:
        words = WORD.findall(sentence)
        words[0] = words[0].lower()  # every sentence begins with a capital
        tags = ["B-UPPER" if w.isupper() else "B-Capital" if w.istitle() else "O" for w in words]
        rows.append(([word.lower() for word in words], tags))
    return rows


def built_in_pairs() -> list[tuple[list[str], list[str], str]]:
    """Two extracts of one sentence, or extracts of two; the label is "same" or "other"."""
    draw = random.Random(0)
    rows = [words for words in built_in_sentences() if 8 <= len(words) <= 24]
    draw.shuffle(rows)
    found = []
    for i, words in enumerate(rows):
        label = ("same", "other")[i % 2]
        other = words if label == "same" else rows[i - 1]
        found.append((_some(words, draw), _some(other, draw), label))
    return found


def _some(words: list[str], draw: random.Random) -> list[str]:
    """An extract: two thirds of the words, in their order."""
    chosen = sorted(draw.sample(range(len(words)), 2 * len(words) // 3))
    return [words[i] for i in chosen]


def pig_latin(word: str) -> str:
    """The word in Pig Latin: consonants at the beginning go to the end, then "ay"; else "way".

    Example:
        pig_latin("string")  # "ingstray"
    """
    start = next((i for i, letter in enumerate(word) if letter in "aeiou"), len(word))
    return word[start:] + word[:start] + ("ay" if start else "way")


def translations(found: Sequence[list[str]]) -> list[tuple[list[str], list[str]]]:
    """The letters of every word of some sentences, and those of its Pig Latin."""
    words = {word for sentence in found for word in sentence}
    known = sorted(w for w in words if w.isascii() and w.islower() and 3 <= len(w) <= 12)
    return [(list(word), list(pig_latin(word))) for word in known if word.isalpha()]
