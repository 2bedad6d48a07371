"""Unigram of SentencePiece: a word is split so that the sum of the scores of its tokens is largest.

Without tokens that a text does not have, its best split is still the best. Of equal sums the first
wins, and no other becomes first. Unknown characters have the lowest score of all less a constant,
so a token of the lowest score stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_engine.vocabulary.models.base import BYTE, TokenModel, spelled


class Unigram(TokenModel):
    """Of T5, Marian, XLM-RoBERTa and ALBERT."""

    type = "Unigram"

    def _ids(self) -> dict[str, int]:
        return {token: i for i, (token, _) in enumerate(self.plain["vocab"])}

    @property
    def unknown(self) -> str | None:
        """The token of characters that have none."""
        i = self.plain["unk_id"]
        return None if i is None else self.plain["vocab"][i][0]

    def always(self) -> set[str]:
        """Single characters, bytes, and a token of the lowest score."""
        characters = {token for token in self.ids if len(token) == 1}
        lowest = min(self.plain["vocab"], key=lambda entry: entry[1])[0]
        return (
            characters
            | {token for token in self.ids if BYTE.fullmatch(token)}
            | spelled(self.ids, characters, list)
            | {lowest}
        )

    def renumbered(self, moves: Mapping[int, int]) -> dict[str, Any]:
        """The tokens with their scores; the place of a token in the list is its id."""
        vocabulary = self.plain["vocab"]
        unknown = self.plain["unk_id"]
        return self.plain | {
            "vocab": [vocabulary[i] for i in moves if i < len(vocabulary)],
            "unk_id": None if unknown is None else moves[unknown],
        }
