"""Recovery: what makes up for removed weights. A new one is a file and an entry in RECOVERIES."""

from __future__ import annotations

from sparse_engine.named import find
from sparse_engine.pruning.recovery.base import Recovery
from sparse_engine.pruning.recovery.bias import Bias
from sparse_engine.pruning.recovery.blocks import Blocks
from sparse_engine.pruning.recovery.least_squares import LeastSquares
from sparse_engine.pruning.recovery.none import NoRecovery
from sparse_engine.pruning.statistics.needs import check_needs

RECOVERIES: tuple[type[Recovery], ...] = (
    NoRecovery,
    Bias,
    LeastSquares,
    Blocks,
)


def find_recovery(recovery: str | Recovery | None) -> Recovery:
    """Return the recovery of a text form; None is "none", and an instance is returned as it is.

    Raises:
        UsageError: if the text is unknown, or the instance needs statistics that do not exist.
    """
    if isinstance(recovery, Recovery):
        check_needs(f"recovery {recovery.name}", recovery.needs)
        return recovery
    return find(recovery or "none", RECOVERIES)


__all__ = ["RECOVERIES", "Bias", "LeastSquares", "NoRecovery", "Recovery", "find_recovery"]
