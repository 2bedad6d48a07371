"""Cutting: heads, units and other structures are scored, chosen and taken out."""

from sparse_engine.pruning.cutting.blocks import (
    BlockMethod,
    block_method,
    cut_blocks,
    find_layer,
    wanted_blocks,
)
from sparse_engine.pruning.cutting.cut import cut, sites_of
from sparse_engine.pruning.cutting.method import (
    CutMethod,
    cut_method,
    find_structures,
    split_structures,
)

__all__ = [
    "BlockMethod",
    "CutMethod",
    "block_method",
    "cut",
    "cut_blocks",
    "cut_method",
    "find_layer",
    "find_structures",
    "sites_of",
    "split_structures",
    "wanted_blocks",
]
