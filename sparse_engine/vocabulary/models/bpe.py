"""Byte-pair encoding: the characters of a word are merged in pairs, the first pair in the list of
merges first.

A text is split as before if the merges that happen in it are left, in their order: at each step the
first merge that is possible among all is the first among those that are left. Which merges make a
token does not depend on the word around it, so they follow from the token alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from sparse_engine.vocabulary.models.base import TokenModel


class BPE(TokenModel):
    """Of GPT-2, RoBERTa, BART and Llama."""

    type = "BPE"

    def __init__(self, plain: dict[str, Any]) -> None:
        super().__init__(plain)
        self._prefix: str = plain["continuing_subword_prefix"] or ""
        self._suffix: str = plain["end_of_word_suffix"] or ""
        self._ranks = {(a, b): rank for rank, (a, b) in enumerate(plain["merges"])}

    def always(self) -> set[str]:
        """Tokens that no merge makes: characters and bytes."""
        return self.ids.keys() - {self._merged(*pair) for pair in self._ranks}

    def needed(self, used: Iterable[str]) -> set[str]:
        """The tokens from which the used ones are merged."""
        return {part for token in used for part in self._parts(token)}

    def renumbered(self, moves: Mapping[int, int]) -> dict[str, Any]:
        """The merges of which the parts and the result are kept stay, in their order."""
        plain = super().renumbered(moves)
        vocabulary = plain["vocab"]
        merges = [
            [a, b]
            for a, b in self._ranks
            if a in vocabulary and b in vocabulary and self._merged(a, b) in vocabulary
        ]
        return plain | {"merges": merges}

    def _merged(self, a: str, b: str) -> str:
        return a + b.removeprefix(self._prefix)

    def _parts(self, token: str) -> set[str]:
        """All tokens from which a token is merged; none if it is made otherwise."""
        symbols = self._characters(token)
        found: set[str] = set(symbols)
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            at = min(range(len(pairs)), key=lambda i: self._ranks.get(pairs[i], len(self._ranks)))
            if pairs[at] not in self._ranks:
                return set()
            symbols[at : at + 2] = [self._merged(*pairs[at])]
            found.add(symbols[at])
        return found

    def _characters(self, token: str) -> list[str]:
        body = token.removeprefix(self._prefix)
        inside = len(body) < len(token)
        ends = bool(self._suffix) and body.endswith(self._suffix)
        body = body.removesuffix(self._suffix)
        symbols = [self._prefix * (inside or i > 0) + c for i, c in enumerate(body)]
        if ends and symbols:
            symbols[-1] += self._suffix
        return symbols
