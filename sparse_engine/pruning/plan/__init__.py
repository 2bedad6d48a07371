"""The plan of a pruning run: which layers are pruned, and which are left and why."""

from sparse_engine.pruning.plan.plan import (
    Filter,
    Layer,
    Plan,
    check_finite,
    make_plan,
    with_couplings,
)
from sparse_engine.pruning.plan.rules import DID_NOT_RUN, reason_by_name
from sparse_engine.pruning.plan.selection import NamePattern, Selection

__all__ = [
    "DID_NOT_RUN",
    "Filter",
    "Layer",
    "NamePattern",
    "Plan",
    "Selection",
    "check_finite",
    "make_plan",
    "reason_by_name",
    "with_couplings",
]
