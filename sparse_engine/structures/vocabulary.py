"""The structure of which a tokenizer and a model lose the same entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparse_engine.errors import UsageError
from sparse_engine.named import Named


@dataclass(frozen=True)
class Vocabulary(Named):
    """Tokens that a corpus does not use: embedding rows, output rows and tokenizer entries.

    Args:
        minimum: how often the corpus uses a token at least that is kept. The words of rarer tokens
            are split into smaller ones.
        size: how many tokens are kept at most; `minimum` then grows as far as it has to.

    Raises:
        UsageError: if one of them is less than 1.
    """

    kind = "structure"
    name: ClassVar[str] = "vocabulary"
    minimum: int = 1
    size: int | None = None

    def __post_init__(self) -> None:
        for option in ("minimum", "size"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"structure {self.name}: {option}={value} is less than 1")
