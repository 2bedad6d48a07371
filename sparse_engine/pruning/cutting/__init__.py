"""Cutting: heads, units and other structures are scored, chosen and taken out."""

from sparse_engine.pruning.cutting.cut import cut
from sparse_engine.pruning.cutting.method import CutMethod, cut_method, find_structures

__all__ = ["CutMethod", "cut", "cut_method", "find_structures"]
