"""Whole words: a word has a token, or is unknown."""

from __future__ import annotations

from sparse_engine.vocabulary.models.base import TokenModel


class WordLevel(TokenModel):
    """Of models with a fixed list of words."""

    type = "WordLevel"

    def always(self) -> set[str]:
        """None: words are not split."""
        return set()
