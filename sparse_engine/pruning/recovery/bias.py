"""Bias: b' = b + (W - V) mean(X), so that only the bias absorbs the mean of what was removed.

An et al. 2023, "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
arXiv:2312.11983. X are the inputs in the dense model.
"""

from __future__ import annotations

from torch import Tensor

from sparse_engine.pruning.recovery.base import Problem, PrunedLayer, Recovery
from sparse_engine.pruning.statistics.system import System


class Bias(Recovery):
    """Keeps the weights as the criterion left them, and shifts the bias.

    Second moments are centred for a layer with a bias, so that criteria score what the bias cannot
    absorb. A layer without a bias gets none.
    """

    name = "bias"
    needs = ("hessian",)

    def centres(self, has_bias: bool) -> bool:
        return has_bias

    def note(self, has_bias: bool) -> str:
        return "" if has_bias else "no bias to absorb the mean of what was removed"

    def repair(
        self, layer: PrunedLayer, problem: Problem, system: System | None
    ) -> tuple[Tensor, Tensor | None]:
        assert system is not None
        if layer.bias is None:
            return layer.pruned, None
        removed = layer.dense - layer.pruned
        return layer.pruned, layer.bias + removed @ system.moments.mean()
