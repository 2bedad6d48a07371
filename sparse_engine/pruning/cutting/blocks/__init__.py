"""Cutting whole blocks of a stack: they are scored, chosen and taken out."""

from sparse_engine.pruning.cutting.blocks.cut import cut_blocks, wanted_blocks
from sparse_engine.pruning.cutting.blocks.method import BlockMethod, block_method, find_layer

__all__ = ["BlockMethod", "block_method", "cut_blocks", "find_layer", "wanted_blocks"]
