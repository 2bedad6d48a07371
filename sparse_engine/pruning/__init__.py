"""Pruning = criterion x granularity x allocator x recovery.

A criterion scores weights, a granularity turns scores into masks, an allocator distributes the
sparsity over the layers, and a recovery adjusts the weights that are kept. Each is a folder of
small files; the driver runs the loop over layers.
"""

from __future__ import annotations

from sparse_engine.pruning.criteria import CRITERIA, Criterion, Inputs
from sparse_engine.pruning.driver import prune
from sparse_engine.pruning.granularity import (
    NM,
    Block,
    Column,
    Element,
    Granularity,
    Row,
    parse_granularity,
)
from sparse_engine.pruning.layer_report import LayerReport
from sparse_engine.pruning.overrides import Override
from sparse_engine.pruning.patterns import LayerPattern, PatternReport, find_patterns
from sparse_engine.pruning.recipe import Recipe, read_recipe
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.target.target import Target

__all__ = [
    "CRITERIA",
    "NM",
    "Block",
    "Column",
    "Criterion",
    "Element",
    "Granularity",
    "Inputs",
    "LayerPattern",
    "LayerReport",
    "Override",
    "PatternReport",
    "PruneReport",
    "Recipe",
    "Row",
    "Target",
    "find_patterns",
    "parse_granularity",
    "prune",
    "read_recipe",
]
