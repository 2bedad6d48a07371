"""Blocks of a stack: whole layers of a Transformer, found by a table and taken out."""

from sparse_engine.structures.blocks.check import check_removable
from sparse_engine.structures.blocks.remove import remove_blocks_
from sparse_engine.structures.blocks.stack import Stack
from sparse_engine.structures.blocks.table import find_stacks

__all__ = ["Stack", "check_removable", "find_stacks", "remove_blocks_"]
