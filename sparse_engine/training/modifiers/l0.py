"""L0: each group has a random gate, and the expected number of open gates is penalised.

While it is trained the model computes with W' = z W. The gates z are hard-concrete random numbers,
a draw for each step (see learned/hard_concrete.py). Their parameters are trained by Adam, with the
gradient sum W dL/dW' over the weights of a group for dL/dz, on the loss and

    strength * sum_g n_g P(z_g > 0) / sum_g n_g

over groups g of n_g weights. With a sparsity the penalty is a (t - s) + b (t - s)^2 instead, where
s is the expected sparsity and t rises to the wanted one; a and b ascend, so that s meets t.

Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv:1712.01312;
a and b: Wang et al. 2020, "Structured Pruning of Large Language Models", arXiv:1910.04732.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.groups import combined
from sparse_engine.training.learned.hard_concrete import (
    expected,
    noise,
    open_probability,
    sampled,
)
from sparse_engine.training.learned.parameters import GroupParameters
from sparse_engine.training.modifiers.learned import Learned, products
from sparse_engine.training.training import Training

RISE = 0.5  # share of the window in which the wanted sparsity rises linearly


class L0(Learned):
    """At the end of the window groups without an open gate are removed, and gates become factors.

    Gates are in the weights from `Pruner.loss` to `Pruner.step` alone. Otherwise the model holds W.

    Attributes:
        strength: of the penalty, if no sparsity is given.
        sparsity: of the weights in all groups.
        learning_rate: of the parameters of the gates, and of a and b.
        open: the probability, without the stretch of the gates, with which each begins open.

    Example:
        L0(sparsity=0.5, granularity=("head", "unit"), end="3ep")
    """

    name: ClassVar[str] = "l0"
    strength: float = Field(default=1.0, gt=0)
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    learning_rate: float = Field(default=0.05, gt=0)
    open: float = Field(default=0.9, gt=0, lt=1)

    _gates: GroupParameters = PrivateAttr()
    _multipliers: GroupParameters = PrivateAttr()
    _drawn: list[tuple[Tensor, Tensor]] = PrivateAttr(default_factory=list)
    _dense: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _factors: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        super().resolve(steps_per_epoch, end)
        first, last = self._window
        if self.sparsity is not None and last in (None, first):
            raise UsageError(f"{self.name}: a sparsity needs an end, and steps before it")

    def begin(self, training: Training) -> None:
        super().begin(training)
        initial = math.log(self.open / (1 - self.open))
        self._gates = GroupParameters(self.new_parameters(training, initial), self.learning_rate)
        zeros = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
        self._multipliers = GroupParameters(zeros, self.learning_rate, maximize=True)

    def before_forward(self, training: Training) -> None:
        if self._drawn or not (self.is_active(training) and self.is_learning(training)):
            return
        before = training.generator.get_state()
        try:
            self._draw(training)
        except BaseException:  # an interrupt
            self._restore(training)
            training.generator.set_state(before)
            raise

    @torch.no_grad()
    def _draw(self, training: Training) -> None:
        """Put a random gate of each group into the weights."""
        parameters = self._gates.values
        self._drawn = [sampled(own, noise(own, training.generator)) for own in parameters]
        gates = [z for z, _ in self._drawn]
        for layer, factor in combined(self._groups, gates):
            weight = layer.weight_in(training.model)
            self._factors[layer.name] = factor
            self._dense[layer.name] = weight.clone()
            weight.mul_(factor)

    def before_step(self, training: Training) -> None:
        if not (self.is_active(training) and self.is_learning(training)):
            return
        if not self._drawn:
            raise UsageError(
                f"{self.name}: the loss has no gates in it; compute it by pruner.loss(batch)"
            )
        values = products(training, lambda layer: self._dense[layer.name])
        slopes = self._penalty_slopes(training)
        gradients = [
            training.mean(own.sums(values)) * dz + slope
            for own, (_, dz), slope in zip(self._groups, self._drawn, slopes, strict=True)
        ]
        for layer in self._gated():
            gradient = layer.gradient_in(training.model)
            if gradient is not None:
                gradient.mul_(self._factors[layer.name])
        self._restore(training)
        self._gates.step(gradients)

    def _penalty_slopes(self, training: Training) -> list[Tensor]:
        """The derivatives of the penalty with respect to the parameters of the gates."""
        probabilities = [open_probability(own) for own in self._gates.values]
        total = sum(own.weights for own in self._groups)
        pairs = list(zip(self._groups, probabilities, strict=True))
        slope = self.strength
        if self.sparsity is not None:
            sparsity = 1 - sum(float((own.sizes * p).sum()) for own, (p, _) in pairs) / total
            missing = self._wanted(training.step) - sparsity
            a, b = (float(x) for x in self._multipliers.values)
            slope = a + 2 * b * missing  # ds/dp is negative, as is that of t - s with respect to s
            ascent = torch.tensor([missing, missing**2], dtype=torch.float64)
            self._multipliers.step(list(ascent))
        return [dp * own.sizes * (slope / total) for own, (_, dp) in pairs]

    def _wanted(self, step: int) -> float:
        """The expected sparsity that the gates should have now."""
        first, last = self._window
        assert self.sparsity is not None
        assert last is not None
        return self.sparsity * min((step + 1 - first) / (RISE * (last - first)), 1.0)

    def _gated(self) -> list[TrainedLayer]:
        """The layers that hold gates now, each once."""
        layers = {layer.name: layer for own in self._groups for layer in own.layers}
        return [layers[name] for name in self._dense]

    def _restore(self, training: Training) -> None:
        """Take the gates out of the weights."""
        for layer in self._gated():
            layer.weight_in(training.model).copy_(self._dense[layer.name])
        self._drawn, self._dense, self._factors = [], {}, {}

    def at_step(self, training: Training) -> None:
        if training.step == self._window[1] and not self._is_settled:
            self._end(training, self.sparsity)

    def _end(self, training: Training, sparsity: float | None) -> None:
        """Remove the groups whose gates are closed, and multiply the others by theirs."""
        parameters = self._gates.values
        gates = [expected(own) for own in parameters]
        if sparsity is None:
            keeps = self._choice.at_least(parameters, [own > 0 for own in gates])
        else:
            keeps = self._choice.best(parameters, sparsity, together=True)
        factors = [
            gate.where(gate > 0, own.sigmoid())  # for those that are kept closed
            for gate, own in zip(gates, parameters, strict=True)
        ]
        for layer, factor in combined(self._groups, factors):
            layer.weight_in(training.model).mul_(factor)
        self.settle(training, keeps)

    def finish(self, training: Training) -> None:
        super().finish(training)
        self._restore(training)
        if not self._is_settled:
            self._end(training, None)

    def state_dict(self) -> dict[str, Any]:
        own = {"gates": self._gates.state_dict(), "multipliers": self._multipliers.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        super().load_state_dict(training, state)
        self._gates.load_state_dict(state["gates"])
        self._multipliers.load_state_dict(state["multipliers"])
