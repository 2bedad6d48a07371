"""Tables of levels, and a machine that takes times from a formula instead of a clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import nn

from sparse_engine.pruning.allocators.base import Setting
from sparse_engine.pruning.granularity import Element
from sparse_engine.pruning.target.levels import Level
from sparse_engine.pruning.target.machine import Machine, Measured, Weights
from sparse_engine.pruning.target.target import Target


def table(*levels: tuple[float, float]) -> list[Level]:
    """Levels of these costs and errors."""
    return [Level(Setting(Element(), 0.5), "csr", cost, error) for cost, error in levels]


def random_tables(rng: random.Random, layers: int, whole: bool = False) -> list[list[Level]]:
    """Tables with costs that ascend and errors that descend."""
    tables = []
    for _ in range(layers):
        count = rng.randint(1, 5)
        costs = [rng.randint(1, 30) if whole else rng.uniform(0.1, 3) for _ in range(count)]
        errors = [rng.random() for _ in range(count)]
        tables.append(table(*zip(sorted(set(costs)), sorted(errors, reverse=True), strict=False)))
    return tables


def budgets_of(tables: Sequence[Sequence[Level]], whole: bool = False) -> list[Any]:
    """Budgets from out of reach to enough for everything, ascending."""
    least, most = (sum(pick(level.cost for level in t) for t in tables) for pick in (min, max))
    budgets = [least * 0.9 + (most * 1.05 - least * 0.9) * i / 9 for i in range(10)]
    return sorted({max(round(b), 1) for b in budgets}) if whole else budgets


class FormulaMachine(Machine):
    """Takes FIXED ms for a model, and for each layer microseconds by its kept weights.

    Attributes:
        bias: what a whole model really takes over what its layers predict.
        models: how many whole models were measured.
    """

    FIXED = 1.0
    bias = 1.0
    models = 0

    def __init__(
        self, model: nn.Module, target: Target, inputs: Any = None, dense: nn.Module | None = None
    ) -> None:
        super().__init__(model, target, inputs or {}, dense)

    def measure_layer(self, shape: tuple[int, int], setting: Setting) -> None:
        """Nothing is timed."""

    def layer(
        self, shape: tuple[int, int], setting: Setting, causal: bool | None
    ) -> tuple[str, float]:
        faster = 1.0 if str(setting.granularity) == "element" else 0.8
        kept = (1 - setting.sparsity) * shape[0] * shape[1]
        return ("csr" if setting.sparsity else "dense"), kept * faster * 1e-3

    def measure(self, weights: Weights, format: str = "auto", clock: bool = True) -> Measured:
        FormulaMachine.models += 1
        kept = 0
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                weight = weights[name][0] if name in weights else module.weight
                kept += int(weight.count_nonzero())
        linears = (m for m in self.dense.modules() if isinstance(m, nn.Linear))
        dense = sum(linear.weight.numel() for linear in linears)
        ms = (self.FIXED + kept * 1e-3) * self.bias
        formats = dict.fromkeys(weights, "csr")
        return Measured(ms, self.FIXED + dense * 1e-3, 4 * kept, formats, {})
