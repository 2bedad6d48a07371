"""Block: structured sparsity in tiles of a fixed size, as BSR stores them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from sparse_engine.errors import UsageError
from sparse_engine.pruning.granularity.tiles import Size, Tiles

NAMES = {"row": "1xall", "column": "allx1"}


@dataclass(frozen=True)
class Block(Tiles):
    """Tiles of `rows` outputs x `cols` inputs; the text form is "4x1".

    With "all" a tile covers the whole layer in that direction: Block(1, "all") is an output row (a
    unit, or a filter), Block(64, "all") the rows of a head of 64 features, and Block("all", 1) a
    column, which is one input of the layer.

    If the shape of a layer is not a multiple of the block, the weight has partial blocks at its
    edges. They are scored by the mean of the elements that they have.

    Raises:
        UsageError: if `rows` or `cols` is less than 1, or both are "all".
    """

    text_form: ClassVar[str] = "ROWSxCOLS such as 4x1 or 1xall, row, column"
    rows: Size
    cols: Size

    def __post_init__(self) -> None:
        sizes = [size for size in (self.rows, self.cols) if size != "all"]
        if not sizes:
            raise UsageError(f"block {self} is a whole layer; at least one group has to remain")
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise UsageError(f'block {self}: rows and cols must be at least 1, or "all"')

    @classmethod
    def parse(cls, text: str) -> Self | None:
        match = re.fullmatch(r"(\d+|all)x(\d+|all)", NAMES.get(text, text))
        if match is None:
            return None
        rows, cols = match.groups()
        return cls("all" if rows == "all" else int(rows), "all" if cols == "all" else int(cols))

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"

    @property
    def has_whole_rows(self) -> bool:
        return self.cols == "all"

    def fits(self, out_features: int, in_features: int) -> bool:
        # A single group would never be removed.
        is_whole = "all" in (self.rows, self.cols) and self.groups(out_features, in_features) == 1
        return super().fits(out_features, in_features) and not is_whole


class Row(Block):
    """Whole output rows, which become zero: Row() is Block(1, "all"), the text "row".

    The shapes of layers stay as they are; the structures Unit and Head take rows out.

    Example:
        se.prune(model, 0.5, se.Row())
    """

    def __new__(cls) -> Block:  # type: ignore[misc]
        return Block(1, "all")


class Column(Block):
    """Whole input columns, which become zero: Column() is Block("all", 1), the text "column".

    Example:
        se.prune(model, 0.5, se.Column())
    """

    def __new__(cls) -> Block:  # type: ignore[misc]
        return Block("all", 1)
