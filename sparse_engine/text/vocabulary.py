"""Sentences with words of a tokenizer's vocabulary in them, so that many embeddings are calibrated.

Prose of one domain uses few of the words that a model has embeddings for. With most of its words
replaced at random it keeps the function words and the sentence structure, and covers the others.
docs/pruning.md has the figures.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

SHARE = 0.9
"""Of the replaceable words."""
WORD = re.compile(r"\b[a-z]{4,}\b")
STARTS = ("\u2581", "\u0120")
"""How SentencePiece and byte-level BPE mark the first piece of a word."""


def whole_words(tokenizer: Any) -> list[str]:
    """The lower-case words of four letters and more that a tokenizer has a token for, sorted.

    Where the vocabulary marks the beginnings of words, pieces without a mark are left out.
    """
    tokens = sorted(tokenizer.get_vocab())
    marked = [token[1:] for token in tokens if token.startswith(STARTS)]
    return [token for token in marked or tokens if WORD.fullmatch(token)]


def with_words(texts: Sequence[str], words: Sequence[str], seed: int = 0) -> list[str]:
    """Texts of which SHARE of the lower-case words of four letters and more are replaced.

    Args:
        texts: stay as they are if there are no words.
        words: replacements; each is drawn with the same probability.
        seed: of the draw.
    """
    if not words:
        return list(texts)
    source = random.Random(seed)

    def replacement(match: re.Match[str]) -> str:
        return source.choice(words) if source.random() < SHARE else match.group()

    return [WORD.sub(replacement, text) for text in texts]
