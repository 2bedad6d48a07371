"""Cutting: heads, units and other structures are scored, chosen and taken out."""

from sparse_engine.pruning.cutting.blocks import block_method, cut_blocks, find_layer
from sparse_engine.pruning.cutting.cut import cut
from sparse_engine.pruning.cutting.method import CutMethod, cut_method, find_structures

__all__ = [
    "CutMethod",
    "block_method",
    "cut",
    "cut_blocks",
    "cut_method",
    "find_layer",
    "find_structures",
]
