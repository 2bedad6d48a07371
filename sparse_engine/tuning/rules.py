"""What passes in a run of `prune_until`, what is tried next, and what ends the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning.target.target import Target
from sparse_engine.tuning.quality import LARGEST, Quality
from sparse_engine.tuning.rounds import FAILED, PASSED, Round, Stop
from sparse_engine.tuning.widen import Widening


@dataclass(frozen=True)
class Rules:
    """The rules of a run.

    Attributes:
        quality: the metric, and how far it may drop.
        widening: the sparsities.
        target: a cost or a sparsity that ends the run.
        patience: so many failed rounds one after another end it.
    """

    quality: Quality
    widening: Widening
    target: Target | float | None
    patience: int | None

    def next(self, rounds: Sequence[Round]) -> float | Stop:
        """The sparsity of the next round, or why there is none.

        Args:
            rounds: those before it, which passed or failed.
        """
        last = next((one for one in reversed(rounds) if one.passed), None)
        if last is not None and self._is_met(last):
            return Stop("target", f"round {last.number} reached the target: {self.target}")
        failures = len([*takewhile(lambda one: not one.passed, reversed(rounds))])
        if self.patience is not None and failures >= self.patience:
            which = "the last round" if failures == 1 else f"the last {failures} rounds"
            return Stop("patience", f"the metric dropped too far in {which}")
        return self.widening.next(rounds)

    def check(self, rounds: Sequence[Round]) -> None:
        """Raise InvalidFileError unless these rounds of a file follow from one another."""
        for number, one in enumerate(rounds, 1):
            measures = [one.metric, one.drop, one.seconds]
            known = all(x is not None and abs(x) <= LARGEST for x in measures)
            if not (
                known
                and one.number == number
                and one.verdict == (PASSED if (one.drop or 0) <= self.quality.max_drop else FAILED)
                and one.seconds >= 0
                and self.next(rounds[: number - 1]) == one.sparsity
            ):
                raise InvalidFileError(
                    f"round {number} in the folder does not follow from those before it: name "
                    "another folder"
                )

    def _is_met(self, one: Round) -> bool:
        target = self.target
        if not isinstance(target, Target):
            return target is not None and one.sparsity >= target
        if one.cost is None or one.less is None:
            return False
        return one.less >= target.value if target.goal == "speedup" else one.cost <= target.value

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "metric": self.quality.name,
            "max_drop": self.quality.max_drop,
            "relative": self.quality.relative,
            "higher_is_better": self.quality.higher_is_better,
            "sparsities": asdict(self.widening),
            "target": asdict(self.target) if isinstance(self.target, Target) else self.target,
            "patience": self.patience,
        }
