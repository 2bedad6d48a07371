"""The weight as kernels read it: made from a format when a layer is built, and back without loss.

The tables of the backends say which packing is made from which format. SELL-P is a format that the CPU
kernels read as it is.
"""

from __future__ import annotations

from sparse_engine.packings.cpu.bits import Bits
from sparse_engine.packings.cpu.groups import Groups
from sparse_engine.packings.cpu.int8 import Bits8, Groups8, QuadRuns, SellP8
from sparse_engine.packings.cpu.runs import Runs
from sparse_engine.packings.cpu.strips import Strips
from sparse_engine.packings.cuda.blocks import Blocks
from sparse_engine.packings.cuda.ell import Ell
from sparse_engine.packings.cuda.packed_nm import PackedNM

__all__ = [
    "Bits",
    "Bits8",
    "Blocks",
    "Ell",
    "Groups",
    "Groups8",
    "PackedNM",
    "QuadRuns",
    "Runs",
    "SellP8",
    "Strips",
]
