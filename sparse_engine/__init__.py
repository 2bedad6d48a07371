"""Prune language models, store what is left, and run it faster than dense.

>>> import sparse_engine as se
>>> report = se.prune(
...     model, 0.9, criterion="sparsegpt", recovery="least_squares", calibration=batches
... )
>>> print(se.sparsify_(model, se.SparseConfig(format="auto", tokens=(1, 128))))
>>> se.save(model, "package", source="path/of/the/dense/model")
>>> model = se.load("package")

Names are imported at their first use, so that `sparse-engine --help` does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BSR",
    "CSR",
    "NM",
    "Bitmask",
    "Block",
    "Column",
    "Element",
    "Expert",
    "Filter",
    "Head",
    "Layer",
    "PruneReport",
    "Pruner",
    "Retrain",
    "Row",
    "SearchReport",
    "SensitivityReport",
    "SentenceEncoder",
    "SparseConfig",
    "SparsifyReport",
    "Target",
    "Unit",
    "UntilReport",
    "Vocabulary",
    "VocabularyReport",
    "Widen",
    "cut_vocabulary",
    "densify_",
    "errors",
    "export_transformers",
    "formats",
    "load",
    "nn",
    "ops",
    "packings",
    "prune",
    "prune_until",
    "save",
    "search",
    "sensitivity",
    "sparsify_",
    "tasks",
    "training",
]

if TYPE_CHECKING:
    from sparse_engine import errors, formats, nn, ops, packings, tasks, training
    from sparse_engine.analysis.report import SensitivityReport
    from sparse_engine.analysis.sensitivity import sensitivity
    from sparse_engine.config import SparseConfig
    from sparse_engine.convert.report import SparsifyReport
    from sparse_engine.convert.sparsify import densify_, sparsify_
    from sparse_engine.formats import BSR, CSR, Bitmask
    from sparse_engine.io import export_transformers, load, save
    from sparse_engine.pruning import NM, Block, Column, Element, PruneReport, Row, Target, prune
    from sparse_engine.structures import Expert, Filter, Head, Layer, Unit, Vocabulary
    from sparse_engine.tasks import SentenceEncoder
    from sparse_engine.training import Pruner
    from sparse_engine.tuning import Retrain, SearchReport, UntilReport, Widen, prune_until
    from sparse_engine.tuning.search import search
    from sparse_engine.vocabulary import VocabularyReport, cut_vocabulary
else:
    from importlib import import_module as _import_module

    # Where each public name that is not a module is defined.
    _HOMES = {
        "analysis.report": ("SensitivityReport",),
        "analysis.sensitivity": ("sensitivity",),
        "config": ("SparseConfig",),
        "formats": ("BSR", "CSR", "Bitmask"),
        "io": ("export_transformers", "load", "save"),
        "pruning": (
            "NM",
            "Block",
            "Column",
            "Element",
            "PruneReport",
            "Row",
            "Target",
            "prune",
        ),
        "structures": ("Expert", "Filter", "Head", "Layer", "Unit", "Vocabulary"),
        "tasks": ("SentenceEncoder",),
        "training": ("Pruner",),
        "tuning": ("Retrain", "SearchReport", "UntilReport", "Widen", "prune_until"),
        "tuning.search": ("search",),
        "vocabulary": ("VocabularyReport", "cut_vocabulary"),
        "convert.sparsify": ("densify_", "sparsify_"),
        "convert.report": ("SparsifyReport",),
    }

    def __getattr__(name):
        """A public name, or any module of the package, at its first use."""
        for home, names in _HOMES.items():
            if name in names:
                value = getattr(_import_module(f"{__name__}.{home}"), name)
                globals()[name] = value
                return value
        if not name.startswith("__"):
            if name == "_core":  # torch's OpenMP library has to be loaded before the system's
                import torch  # noqa: F401
            path = f"{__name__}.{name}"
            try:
                return _import_module(path)
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
