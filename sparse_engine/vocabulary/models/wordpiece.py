"""WordPiece: a word is split from the left, each time by the longest token that matches.

Tokens that the words of a text do not have may go: the longest match among all tokens is the
longest among those that are left.
"""

from __future__ import annotations

from sparse_engine.vocabulary.models.base import TokenModel, spelled


class WordPiece(TokenModel):
    """Of BERT, DistilBERT, MPNet and ELECTRA."""

    type = "WordPiece"

    @property
    def prefix(self) -> str:
        """What tokens begin with that continue a word."""
        return str(self.plain["continuing_subword_prefix"])

    def always(self) -> set[str]:
        """Single characters, both at the beginning of a word and inside it."""
        characters = {token for token in self.ids if len(self._spell(token)) == 1}
        return characters | spelled(self.ids, characters, self._spell)

    def needed_for_unknown(self, word: str) -> set[str]:
        """The tokens of its beginning, up to where none matches."""
        found: set[str] = set()
        if len(word) > self.plain["max_input_chars_per_word"]:
            return found
        start = 0
        while start < len(word):
            prefix = self.prefix if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self.ids), None)
            if end is None:
                break
            found.add(prefix + word[start:end])
            start = end
        return found

    def _spell(self, token: str) -> list[str]:
        inside = token.startswith(self.prefix) and len(token) > len(self.prefix)
        body = token[len(self.prefix) :] if inside else token
        return [self.prefix * (inside or i > 0) + c for i, c in enumerate(body)]
