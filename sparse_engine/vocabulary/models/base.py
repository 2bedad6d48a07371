"""What a model of the tokenizers library needs of its vocabulary."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Tokens of single bytes, into which characters without a token of their own fall apart."""


class TokenModel(ABC):
    """The `model` of a tokenizer.json: it splits a word into tokens of its vocabulary.

    Attributes:
        type: its name in tokenizer.json.
        plain: the values in tokenizer.json.
        ids: of its tokens; added tokens may have further ones.
    """

    type: ClassVar[str]

    def __init__(self, plain: dict[str, Any]) -> None:
        self.plain = plain
        self.ids: dict[str, int] = self._ids()

    def _ids(self) -> dict[str, int]:
        return dict(self.plain["vocab"])

    @property
    def unknown(self) -> str | None:
        """The token of what has no other."""
        return self.plain.get("unk_token")

    @abstractmethod
    def always(self) -> set[str]:
        """The tokens without which some texts could not be split any more."""

    def needed(self, used: Iterable[str]) -> set[str]:
        """Further tokens without which a text would be split into others than `used`."""
        del used
        return set()

    def needed_for_unknown(self, word: str) -> set[str]:
        """The tokens without which a word that is unknown would not be unknown."""
        del word
        return set()

    def renumbered(self, moves: Mapping[int, int]) -> dict[str, Any]:
        """The values with a part of the tokens.

        Args:
            moves: the new ids of the old ones that are kept, in the order of the new ones.
        """
        kept = sorted((moves[i], token) for token, i in self.ids.items() if i in moves)
        return self.plain | {"vocab": {token: i for i, token in kept}}


def spelled(tokens: Iterable[str], characters: set[str], spell: Any) -> set[str]:
    """The tokens that single characters cannot replace, because one of them has no token.

    Args:
        tokens: all of them.
        characters: those of single characters.
        spell: spell(token) gives the tokens of its characters.
    """
    return {token for token in tokens if not characters.issuperset(spell(token))}
