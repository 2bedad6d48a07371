"""The criteria there are; a new one is a file and a place in this tuple."""

from __future__ import annotations

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.criteria.random import Random
from sparse_engine.pruning.criteria.sparsegpt import SparseGPT
from sparse_engine.pruning.criteria.wanda import Wanda

CRITERIA: tuple[type[Criterion], ...] = (Random, Magnitude, Wanda, SparseGPT)


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The criterion of a name ("wanda"); an instance is returned as it is.

    Raises UsageError for an unknown name.
    """
    if isinstance(criterion, Criterion):
        return criterion
    for known in CRITERIA:
        if known.name == criterion:
            return known()
    names = ", ".join(known.name for known in CRITERIA)
    raise UsageError(f"criterion {criterion!r} is not known; choose one of {names}")
