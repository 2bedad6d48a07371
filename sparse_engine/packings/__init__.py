"""The weight as kernels read it: made from a format when a layer is built, and back without loss.

The tables in `backends/` choose the packing for a format.
"""

from __future__ import annotations

from sparse_engine.packings.base import Packing
from sparse_engine.packings.cpu.bits import Bits
from sparse_engine.packings.cpu.columns import Columns, Columns8
from sparse_engine.packings.cpu.groups import Groups
from sparse_engine.packings.cpu.half_runs import HalfRuns
from sparse_engine.packings.cpu.int8 import Bits8, Groups8, QuadRuns, SellP8
from sparse_engine.packings.cpu.runs import Runs
from sparse_engine.packings.cpu.sellp import PackedSellP
from sparse_engine.packings.cpu.strips import Strips
from sparse_engine.packings.cpu.tiles import PackedTiles, PackedTiles8
from sparse_engine.packings.cuda.bsr import PackedBSR
from sparse_engine.packings.cuda.ell import Ell
from sparse_engine.packings.cuda.nm import PackedNM

__all__ = [
    "Bits",
    "Bits8",
    "Columns",
    "Columns8",
    "Ell",
    "Groups",
    "Groups8",
    "HalfRuns",
    "PackedBSR",
    "PackedNM",
    "PackedSellP",
    "PackedTiles",
    "PackedTiles8",
    "Packing",
    "QuadRuns",
    "Runs",
    "SellP8",
    "Strips",
]
