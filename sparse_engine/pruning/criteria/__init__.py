"""Criteria: how much each weight matters. A new one is a file and an entry in CRITERIA."""

from __future__ import annotations

from sparse_engine.named import find
from sparse_engine.pruning.criteria.activation import Activation
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.coupled import Coupled
from sparse_engine.pruning.criteria.fisher import Fisher
from sparse_engine.pruning.criteria.generator import GeneratorMask
from sparse_engine.pruning.criteria.groups import Groups, Reader, Removals
from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.criteria.magnitude import Magnitude
from sparse_engine.pruning.criteria.obs import OBS
from sparse_engine.pruning.criteria.random import Random
from sparse_engine.pruning.criteria.snip import Snip
from sparse_engine.pruning.criteria.sparsegpt import SparseGPT
from sparse_engine.pruning.criteria.taylor import Taylor
from sparse_engine.pruning.criteria.wanda import Wanda
from sparse_engine.pruning.statistics.needs import check_needs

CRITERIA: tuple[type[Criterion], ...] = (
    Random,
    Magnitude,
    Coupled,
    Activation,
    Wanda,
    Taylor,
    Snip,
    Fisher,
    SparseGPT,
    OBS,
    GeneratorMask,
)


def find_criterion(criterion: str | Criterion) -> Criterion:
    """Return the criterion of a text form; an instance is returned as it is.

    Args:
        criterion: such as "wanda" or "obs(ratio=0.7)".

    Raises:
        UsageError: if the text is unknown, or the instance needs statistics that do not exist.
    """
    if isinstance(criterion, Criterion):
        check_needs(f"criterion {criterion.name}", criterion.needs)
        return criterion
    return find(criterion, CRITERIA)


__all__ = [
    "CRITERIA",
    "OBS",
    "Activation",
    "Coupled",
    "Criterion",
    "Fisher",
    "GeneratorMask",
    "Groups",
    "Inputs",
    "Magnitude",
    "Random",
    "Reader",
    "Removals",
    "Snip",
    "SparseGPT",
    "Taylor",
    "Wanda",
    "find_criterion",
]
