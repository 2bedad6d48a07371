"""One round of `prune_until`, and why a run ended."""

from __future__ import annotations

from dataclasses import dataclass

PASSED, FAILED, UNFINISHED = "passed", "failed", "unfinished"


@dataclass(frozen=True)
class Round:
    """Prune, train, evaluate.

    Attributes:
        number: from 1 up.
        sparsity: what was asked for: the fraction of groups, or of structures, that are gone.
        method: how it was pruned: criterion, granularity, allocator, recovery.
        metric: of the model afterwards; None if the round did not get so far.
        drop: how much worse that is than the dense model, as `max_drop` counts it.
        cost: of the converted model, in the unit of the target; None without a target.
        less: how many times less that is than the dense model's cost.
        seconds: the time of the round.
        verdict: "passed", "failed" or "unfinished".
    """

    number: int
    sparsity: float
    method: str = ""
    metric: float | None = None
    drop: float | None = None
    cost: float | None = None
    less: float | None = None
    seconds: float = 0.0
    verdict: str = UNFINISHED

    @property
    def passed(self) -> bool:
        """Whether the metric is good enough."""
        return self.verdict == PASSED


@dataclass(frozen=True)
class Stop:
    """Why a run ended.

    Attributes:
        kind: "target", "limit", "list", "most", "patience", "budget", "metric", "error" or
            "interrupt".
        reason: a sentence without a full stop.
    """

    kind: str
    reason: str
