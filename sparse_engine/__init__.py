"""Prune language models, store what is left, and run it faster than dense.

>>> import sparse_engine as se
>>> report = se.prune(model, 0.9, criterion="sparsegpt", recovery="lsq", calibration=batches)
>>> print(se.sparsify_(model, se.SparseConfig(format="auto", tokens=(1, 128))))
>>> se.save(model, "package", source="path/of/the/dense/model")
>>> model = se.load("package")
"""

from __future__ import annotations

from sparse_engine import errors, formats, nn, ops, packings, tasks
from sparse_engine.config import SparseConfig
from sparse_engine.formats import BSR, CSR, Bitmask
from sparse_engine.io import load, save
from sparse_engine.pruning import NM, Block, Element, PruneReport, prune
from sparse_engine.sparsify import densify_, sparsify_
from sparse_engine.sparsify_report import SparsifyReport

__version__ = "0.1.0"

__all__ = [
    "BSR",
    "CSR",
    "NM",
    "Bitmask",
    "Block",
    "Element",
    "PruneReport",
    "SparseConfig",
    "SparsifyReport",
    "densify_",
    "errors",
    "formats",
    "load",
    "nn",
    "ops",
    "packings",
    "prune",
    "save",
    "sparsify_",
    "tasks",
]
