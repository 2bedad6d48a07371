"""Pruning: which weights go, and how the rest makes up for them.

A criterion scores, a granularity turns scores into masks, an allocator shares out the sparsity, a
recovery repairs what is left, and the driver walks.
"""

from __future__ import annotations

from sparse_engine.pruning.criteria import CRITERIA
from sparse_engine.pruning.criteria.base import Criterion, Inputs
from sparse_engine.pruning.driver import prune
from sparse_engine.pruning.granularity import NM, Block, Element, Granularity, parse_granularity
from sparse_engine.pruning.report import LayerReport, PruneReport

__all__ = [
    "CRITERIA",
    "NM",
    "Block",
    "Criterion",
    "Element",
    "Granularity",
    "Inputs",
    "LayerReport",
    "PruneReport",
    "parse_granularity",
    "prune",
]
