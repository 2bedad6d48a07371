"""Recovery: what makes up for removed weights. A new one is a file and an entry in RECOVERIES."""

from __future__ import annotations

from sparse_engine.errors import UsageError
from sparse_engine.pruning.recovery.base import Recovery
from sparse_engine.pruning.recovery.least_squares import LeastSquares
from sparse_engine.pruning.recovery.none import NoRecovery

RECOVERIES: tuple[type[Recovery], ...] = (NoRecovery, LeastSquares)


def find_recovery(recovery: str | None) -> Recovery:
    """Return the recovery of a name or alias; None is "none".

    Raises:
        UsageError: if the name is unknown.
    """
    for known in RECOVERIES:
        if (recovery or "none") in (known.name, *known.aliases):
            return known()
    names = ", ".join(known.name for known in RECOVERIES)
    raise UsageError(f"recovery {recovery!r} is not known; choose one of {names}")


__all__ = ["RECOVERIES", "LeastSquares", "NoRecovery", "Recovery", "find_recovery"]
