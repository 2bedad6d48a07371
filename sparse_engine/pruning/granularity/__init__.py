"""Granularities: which weights are kept or removed together.

A new granularity is a file in this folder and an entry in GRANULARITIES.
"""

from __future__ import annotations

from sparse_engine import formats
from sparse_engine.errors import UsageError
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.granularity.block import Block, Column, Row
from sparse_engine.pruning.granularity.element import Element
from sparse_engine.pruning.granularity.kept_columns import KeptColumns
from sparse_engine.pruning.granularity.nm import NM
from sparse_engine.pruning.granularity.tiles import Tiles
from sparse_engine.structures import STRUCTURES

GRANULARITIES: tuple[type[Granularity], ...] = (Element, Block, NM)


def parse_granularity(text: str | Granularity) -> Granularity:
    """Return the granularity of a text form; `str()` of the result gives the text back.

    Args:
        text: "element", "4x1" (rows x columns), "1xall" (whole rows, or "row"), "column", "2:4"
            (keep:of), or a granularity, which is returned as it is. A matrix that is stored as N:M
            gives its pattern.

    Raises:
        UsageError: if no granularity has this text form.
    """
    if isinstance(text, formats.NM):
        return NM(text.keep, text.of)
    if isinstance(text, Granularity):
        return text
    for known in GRANULARITIES if isinstance(text, str) else ():
        if (granularity := known.parse(text)) is not None:
            return granularity
    *first, last = (known.text_form for known in GRANULARITIES)
    structures = ", ".join(structure.name for structure in STRUCTURES)
    raise UsageError(
        f"granularity {text!r} is not known; give {', '.join(first)}, or {last}; or one of the "
        f"structures {structures}{'; several are a list' if ',' in str(text) else ''}"
    )


__all__ = [
    "GRANULARITIES",
    "NM",
    "Block",
    "Column",
    "Element",
    "Granularity",
    "KeptColumns",
    "Row",
    "Tiles",
    "parse_granularity",
]
