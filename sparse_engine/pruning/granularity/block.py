"""Block: structured sparsity in tiles of a fixed size, as BSR stores them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from sparse_engine.errors import UsageError
from sparse_engine.pruning.granularity.tiles import Tiles


@dataclass(frozen=True)
class Block(Tiles):
    """Tiles of `rows` outputs x `cols` inputs; the text form is "4x1".

    If the shape of a layer is not a multiple of the block, the weight has partial blocks at its
    edges. They are scored by the mean of the elements that they have.

    Raises:
        UsageError: if `rows` or `cols` is less than 1.
    """

    text_form: ClassVar[str] = "ROWSxCOLS such as 4x1"
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise UsageError(f"block {self.rows}x{self.cols}: rows and cols must be at least 1")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"
