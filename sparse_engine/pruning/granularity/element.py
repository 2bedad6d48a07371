"""Element: unstructured sparsity, every weight on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from sparse_engine.pruning.granularity.tiles import Tiles


@dataclass(frozen=True)
class Element(Tiles):
    """Every weight is a group of its own; the text form is "element"."""

    text_form: ClassVar[str] = "element"
    rows = 1
    cols = 1

    @classmethod
    def parse(cls, text: str) -> Self | None:
        return cls() if text == "element" else None

    def __str__(self) -> str:
        return "element"
