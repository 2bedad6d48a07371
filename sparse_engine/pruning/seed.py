"""Seeds of random numbers."""

from __future__ import annotations

from typing import Any

from sparse_engine.errors import UsageError

MAX_SEED = 10**18  # batches add their numbers, and a generator takes 64 bits


def check_seed(seed: Any) -> None:
    """Raise UsageError unless `seed` is a whole number that generators accept."""
    if type(seed) is not int or abs(seed) >= MAX_SEED:
        raise UsageError(f"seed {seed!r:.40} is not a whole number of at most 18 digits")
