"""The plan of a pruning run: which layers are pruned, and which are left and why."""

from sparse_engine.pruning.plan.plan import Filter, Layer, Plan, make_plan
from sparse_engine.pruning.plan.rules import DID_NOT_RUN, reason_by_name

__all__ = ["DID_NOT_RUN", "Filter", "Layer", "Plan", "make_plan", "reason_by_name"]
