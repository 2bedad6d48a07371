"""What the converted copy of a model costs, in the unit of a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparse_engine.convert.census import census
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.target.machine import Machine, bytes_of
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.target.timing import inputs_of

NO_WORK = ("embedding", "norm")


@dataclass(frozen=True)
class Cost:
    """A cost, and how many times less it is than that of the dense model.

    Attributes:
        value: in the unit of the target; of a speed-up the milliseconds.
        less: the cost of the dense model over this one.
    """

    value: float
    less: float


class Costs:
    """Converts copies of a model and measures them against the dense model.

    Args:
        target: the goal, with tokens, threads and dtype.
        dense: a copy of the model before it was pruned.
        batches: calibration inputs, for the times of models that do not read token ids.

    Raises:
        UsageError: if no inputs of so many tokens can be made for the model.
    """

    def __init__(self, target: Target, dense: nn.Module, batches: Sequence[Batch]) -> None:
        self.target = target
        self._dense = dense
        self._inputs: Any = inputs_of(dense, target.tokens, [*batches]) if target.is_time else {}

    def measure(self, model: nn.Module) -> Cost:
        """The cost of a model, which stays as it is."""
        goal = self.target.goal
        if goal in ("params", "flops"):
            count = parameters_of if goal == "params" else _operations
            value, dense = count(model), count(self._dense)
            return Cost(value, dense / value)
        machine = Machine(model, self.target, self._inputs, self._dense)
        if goal == "size_mb":
            nbytes = machine.measure({}, "csr", clock=False).nbytes
            return Cost(nbytes / 1e6, bytes_of(self._dense) / nbytes)
        found = machine.measure({})
        return Cost(found.ms, found.dense_ms / found.ms)


def parameters_of(model: nn.Module) -> float:
    """Parameters that are left: all but the zeros of weights that are multiplied."""
    counted = census(model)
    zeros = sum(r.zeros for r in counted.rows if not r.tied_to and r.kind not in NO_WORK)
    return float(counted.parameters - zeros)


def _operations(model: nn.Module) -> float:
    """Operations for one token with the weights that are left."""
    counted = census(model)
    return 2 * counted.multiply_adds * (1 - counted.zeros_of_multiply_adds)
