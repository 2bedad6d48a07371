"""Target: what a pruned model may cost, in exactly one unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparse_engine.errors import UsageError

GOALS = ("speedup", "latency_ms", "size_mb", "params", "flops")
TIMES = ("speedup", "latency_ms")
DTYPES = ("float32", "bfloat16", "int8")
SHARES = (0.0, 0.125, 0.25, 0.5)
SEARCHES = ("evolution", "controller")
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Target:
    """What the model may cost after pruning and conversion. Exactly one goal is given.

    Attributes:
        speedup: time of the dense model in torch over the time of the converted model, above 1.
        latency_ms: milliseconds of one call of the converted model.
        size_mb: megabytes (10^6 bytes) of the converted model, its layers stored as csr.
        params: parameters that are kept: all that are not removed from a pruned layer.
        flops: operations for one token, two for each multiply-add with a kept weight.
        tokens: tokens of a call, batch rows x length, for the two goals of time.
        dtype: of the weights after conversion, as in SparseConfig.
        threads: cores that are used while times are measured; None for torch's setting.
        search_seconds: how long the choice of levels is improved by the error of the model's
            outputs on calibration inputs; 0 for not at all. All shares together have so long.
        search: how: "evolution" mutates the best choice, "controller" is a recurrent policy that
            learns from the errors.
        sparsities: what is tried in every layer, ascending.
        shares: fractions of heads, units or other structures that are tried where `prune` may
            remove some, ascending; 0 is none.

    Raises:
        UsageError: unless there is one goal, and every value is in its range.

    Example:
        se.prune(model, target=se.Target(speedup=3.0, tokens=128), calibration=batches)
    """

    speedup: float | None = None
    latency_ms: float | None = None
    size_mb: float | None = None
    params: float | None = None
    flops: float | None = None
    tokens: int = 128
    dtype: str = "float32"
    threads: int | None = None
    search_seconds: float = 30.0
    search: str = "evolution"
    sparsities: tuple[float, ...] = SPARSITIES
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        given = [goal for goal in GOALS if getattr(self, goal) is not None]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "got none"
            raise UsageError(f"a target has exactly one of {', '.join(GOALS)}; {found}")
        least = 1 if self.goal == "speedup" else 0
        if not _is_number(self.value) or not least < self.value < math.inf:
            raise UsageError(f"target {self.goal} {self.value!r}: give a number above {least}")
        if type(self.tokens) is not int or self.tokens < 1:
            raise UsageError(f"target tokens {self.tokens!r}: give a whole number from 1 up")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise UsageError(f"target threads {self.threads!r}: give a whole number from 1 up")
        if self.dtype not in DTYPES:
            raise UsageError(f"target dtype {self.dtype!r}: use {', '.join(DTYPES)}")
        if not _is_number(self.search_seconds) or not 0 <= self.search_seconds < math.inf:
            raise UsageError(f"target search_seconds {self.search_seconds!r}: give 0 or more")
        if self.search not in SEARCHES:
            raise UsageError(f"target search {self.search!r}: use {' or '.join(SEARCHES)}")
        for name in ("sparsities", "shares"):
            fractions = getattr(self, name)
            ascending = isinstance(fractions, tuple) and all(map(_is_number, fractions))
            if not ascending or not fractions or [*fractions] != sorted({*fractions}):
                raise UsageError(f"target {name} {fractions!r}: give fractions in ascending order")
        if not 0 < self.sparsities[0] <= self.sparsities[-1] < 1:
            raise UsageError(
                f"target sparsities {self.sparsities!r}: each must be above 0 and below 1"
            )
        if not 0 <= self.shares[0] <= self.shares[-1] < 1:
            raise UsageError(f"target shares {self.shares!r}: each must be 0 or above, and below 1")

    @property
    def goal(self) -> str:
        """The name of the goal that was given."""
        return next(goal for goal in GOALS if getattr(self, goal) is not None)

    @property
    def value(self) -> float:
        """The value of the goal."""
        value: float = getattr(self, self.goal)
        return value

    @property
    def is_time(self) -> bool:
        """Whether the goal is measured with a clock."""
        return self.goal in TIMES

    def __str__(self) -> str:
        """Such as "speedup 3 at 128 tokens"."""
        name = self.goal.replace("_", " ")
        at = f" at {self.tokens} tokens" if self.is_time else ""
        return f"{name} {self.value:g}{at}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
