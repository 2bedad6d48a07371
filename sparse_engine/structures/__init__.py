"""Structures: heads, units and other groups that are removed from a model as a whole.

`find_sites` tells where a model has them and which rows and columns belong to each, by explicit
tables; `resize_` takes them out. A new kind of model is a file in tables/, a new kind of module
one in resize/.
"""

from sparse_engine.structures.blocks import (
    Stack,
    check_removable,
    find_stacks,
    remove_blocks_,
)
from sparse_engine.structures.find import find_left, find_sites
from sparse_engine.structures.fit import Fit, Remaining, Shape, find_fit, hollow
from sparse_engine.structures.ranges import ranges_text, read_ranges
from sparse_engine.structures.resize import check_resizable, resize_
from sparse_engine.structures.site import Left, Site, Size
from sparse_engine.structures.structure import (
    STRUCTURES,
    Expert,
    Filter,
    Head,
    Layer,
    Read,
    Structure,
    Unit,
    stated_readers,
)
from sparse_engine.structures.vocabulary import Vocabulary

__all__ = [
    "STRUCTURES",
    "Expert",
    "Filter",
    "Fit",
    "Head",
    "Layer",
    "Left",
    "Read",
    "Remaining",
    "Shape",
    "Site",
    "Size",
    "Stack",
    "Structure",
    "Unit",
    "Vocabulary",
    "check_removable",
    "check_resizable",
    "find_fit",
    "find_left",
    "find_sites",
    "find_stacks",
    "hollow",
    "ranges_text",
    "read_ranges",
    "remove_blocks_",
    "resize_",
    "stated_readers",
]
