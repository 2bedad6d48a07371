"""How a sparse weight is stored: one class a format, each a frozen set of plain tensors.

`FORMATS` lists the classes; `FormatSpec.parse` reads their names, as on the command line.
"""

from __future__ import annotations

from sparse_engine.formats.base import Format
from sparse_engine.formats.bitmask import Bitmask
from sparse_engine.formats.bsr import BSR, block_fill
from sparse_engine.formats.csr import CSR
from sparse_engine.formats.nm import NM, most_in_group
from sparse_engine.formats.pattern import Pattern
from sparse_engine.formats.sellp import SellP
from sparse_engine.formats.spec import FORMATS, FormatSpec

__all__ = [
    "BSR",
    "CSR",
    "FORMATS",
    "NM",
    "Bitmask",
    "Format",
    "FormatSpec",
    "Pattern",
    "SellP",
    "block_fill",
    "most_in_group",
]
