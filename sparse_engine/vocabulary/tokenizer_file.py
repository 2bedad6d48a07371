"""tokenizer.json with a part of its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.vocabulary.models import token_model


class TokenizerFile:
    """A tokenizer.json as plain values.

    Attributes:
        plain: the values, all defaults included.
        model: what splits words.
        ids: of all tokens, added ones included.
        added: the added tokens, and those that are put around a text; texts are not searched for
            them to decide which are kept.
    """

    def __init__(self, raw: bytes, where: str) -> None:
        """Raises InvalidFileError for a damaged file, UsageError for a random tokenizer."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UsageError("this needs tokenizers: pip install sparse-engine[hf]") from error
        try:
            tokenizer = Tokenizer.from_buffer(raw)
        except Exception as error:  # the Rust side raises Exception itself
            raise InvalidFileError(f"{where} is not a tokenizer: {error}") from error
        self.plain: dict[str, Any] = json.loads(tokenizer.to_str())
        if self.plain["model"].get("dropout"):
            raise UsageError(f"{where}: its dropout splits texts at random; set it to null")
        self.model = token_model(self.plain["model"])
        added = {entry["content"]: entry["id"] for entry in self.plain["added_tokens"]}
        self.ids: dict[str, int] = self.model.ids | added
        around = dict(token for part in _processors(self.plain) for token in _tokens(part))
        if other := next((token for token, i in around.items() if self.ids.get(token) != i), None):
            raise InvalidFileError(f"{where}: {other!r:.60} of the post-processor has another id")
        self.added = self.ids.keys() & (added.keys() | around.keys() | {self.model.unknown})

    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer`, without its own padding and truncation."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.text())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def text(self) -> str:
        """The contents of the file."""
        return json.dumps(self.plain, ensure_ascii=False, indent=1)

    def renumbered(self, moves: Mapping[int, int]) -> TokenizerFile:
        """The file with a part of the tokens, under new ids.

        Args:
            moves: the new ids of the old ones that are kept, in the order of the new ones.

        Raises:
            UsageError: if the library gives tokens other ids when it reads the file.
        """
        plain = json.loads(json.dumps(self.plain))
        plain["model"] = self.model.renumbered(moves)
        for entry in plain["added_tokens"]:
            entry["id"] = moves[entry["id"]]
        if plain["padding"] is not None:
            plain["padding"]["pad_id"] = moves.get(plain["padding"]["pad_id"], 0)
        for part in _processors(plain):
            _renumber(part, moves)
        new = TokenizerFile(json.dumps(plain).encode(), "the new tokenizer.json")
        expected = {token: moves[i] for token, i in self.ids.items() if i in moves}
        if new.ids != expected or new.tokenizer().get_vocab() != expected:
            raise UsageError("tokenizer.json has gaps between its ids, so it cannot be renumbered")
        return new


def _processors(plain: dict[str, Any]) -> list[dict[str, Any]]:
    top = plain["post_processor"]
    return [] if top is None else top.get("processors", [top])


def _tokens(processor: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The tokens that a part of a post-processor puts around a text, with their ids."""
    for entry in processor.get("special_tokens", {}).values():
        yield from zip(entry["tokens"], entry["ids"], strict=True)
    for side in ("sep", "cls"):
        if side in processor:
            yield tuple(processor[side])


def _renumber(processor: dict[str, Any], moves: Mapping[int, int]) -> None:
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [moves[i] for i in entry["ids"]]
    for side in ("sep", "cls"):
        if side in processor:
            token, i = processor[side]
            processor[side] = [token, moves[i]]
