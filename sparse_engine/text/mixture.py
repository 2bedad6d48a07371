"""Calibration texts drawn from several sources by their shares, and a record of what was drawn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparse_engine.text.sources import Source
from sparse_engine.text.vocabulary import with_words

FEW = 128
"""Texts of a file below which quality suffers: docs/pruning.md."""


@dataclass(frozen=True)
class Part:
    """What one source gave: `used` texts of `available` ones; `detail` says what they are."""

    source: Source
    used: int
    available: int
    detail: str = ""

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.used} of {self.available} from {self.source.name}{detail}"


@dataclass(frozen=True)
class CalibrationTexts:
    """Texts that a model is calibrated on.

    Attributes:
        texts: in the order of the sources.
        parts: what each source gave.
    """

    texts: tuple[str, ...]
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return f"{len(self.texts)} texts: {', '.join(map(str, self.parts))}"

    @property
    def warnings(self) -> list[str]:
        """A line for each source that holds few texts."""
        return [
            f"{part.source.name} holds only {part.available} texts; use {FEW} or more"
            for part in self.parts
            if part.available < FEW
        ]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Plain values for JSON: the sources, and a SHA-256 of the texts in their order."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(f"{len(text)}:{text}".encode())
        sources = [
            {
                "name": part.source.name,
                "share": part.source.share,
                "texts": part.used,
                "available": part.available,
                **({"detail": part.detail} if part.detail else {}),
            }
            for part in self.parts
        ]
        return {"sources": sources, "texts": len(self.texts), "sha256": digest.hexdigest()}


def mix(
    sources: Sequence[Source],
    samples: int,
    seed: int = 0,
    long: bool = False,
    words: Sequence[str] = (),
) -> CalibrationTexts:
    """Draw texts at random, from each source its share of `samples`.

    A source with fewer texts gives all of them. A text that several sources hold is drawn from the
    first of them alone.

    Args:
        sources: at least one.
        samples: the number of texts.
        seed: of the draw.
        long: draw passages instead of sentences, for models that generate.
        words: replace most words of sources that are `variable` by these.
    """
    total = sum(source.share for source in sources)
    texts: list[str] = []
    parts: list[Part] = []
    reached = 0.0
    taken: set[str] = set()
    for source in sources:
        pool = source.passages if long and source.passages else source.texts
        pool = tuple(text for text in pool if text not in taken)
        # Cumulative shares are rounded, so that the counts add up to `samples`.
        begin, reached = reached, reached + source.share / total
        count = min(round(reached * samples) - round(begin * samples), len(pool))
        chosen = sorted(random.Random(seed).sample(range(len(pool)), count))
        drawn, detail = [pool[i] for i in chosen], source.detail
        if source.variable and words:
            drawn = with_words(drawn, words, seed)
            detail += "; most words replaced by others of the vocabulary"
        texts += drawn
        taken.update(pool)
        parts.append(Part(source, count, len(pool), detail))
    return CalibrationTexts(tuple(texts), tuple(parts))
