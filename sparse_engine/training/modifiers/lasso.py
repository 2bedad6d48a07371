"""Lasso and group Lasso: the norm of each group shrinks by a little after each step.

After a step of the optimizer with learning rate lr, each group w of n weights becomes

    w max(0, 1 - lr * strength * sqrt(n) / |w|)

which is the proximal step of the penalty strength * sqrt(n) * |w|. For single weights it is the
soft threshold. Groups become zero exactly, and leave zero again if their gradient is large enough.
The step is the same for adaptive optimizers: it is decoupled from their scaling of gradients, as
the weight decay of AdamW is.

Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables"; blocks of
recurrent networks: Narang et al. 2017, arXiv:1711.02782; units with all of
their rows and columns: Wen et al. 2018, "Learning Intrinsic Sparse Structures within Long
Short-Term Memory", arXiv:1709.05027.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, PrivateAttr
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.choice import Choice
from sparse_engine.training.learned.groups import WeightGroups, combined, full_precision
from sparse_engine.training.modifiers.learned import Learned
from sparse_engine.training.training import Training

MAX_STRENGTH = 10.0
"""Ten times what takes back a step of Adam; only a learning rate of almost 0 needs more."""


class Lasso(Learned):
    """Groups that are zero at the end of the window stay zero.

    Attributes:
        strength: of the penalty. Without a sparsity it holds. With SGD it is compared with the
            gradients of the loss. With Adam, whose steps have a length of about the learning rate
            for each weight, with 1.
        sparsity: of the weights in all groups. The share of zeros is to rise to it linearly in the
            window. Where there are fewer zeros the strength grows, up to MAX_STRENGTH. Where there
            are enough it falls, and the groups of the largest norms do not shrink. What is missing
            at the end is removed by the norms.
        growth: by which the strength is multiplied or divided after a step.

    Example:
        Lasso(sparsity=0.8, granularity="unit", end="4ep")
    """

    name: ClassVar[str] = "lasso"
    strength: float = Field(default=0.01, gt=0)
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    growth: float = Field(default=1.05, gt=1)

    _strength: float = PrivateAttr(default=0.0)
    _whole: list[WeightGroups] = PrivateAttr(default_factory=list)

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        super().resolve(steps_per_epoch, end)
        first, last = self._window
        if self.sparsity is not None and last in (None, first):
            raise UsageError(f"{self.name}: a sparsity needs an end, and steps before it")

    def begin(self, training: Training) -> None:
        super().begin(training)
        self._strength = self.strength
        self._whole = [own.whole for own in self._groups]
        self._choice = Choice(self._whole, self.max_sparsity, self.wanted)

    def after_step(self, training: Training) -> None:
        if self._is_settled or not self.is_active(training):
            return
        # The order of a sum may differ between processes, whose zeros have to agree.
        norms = [training.mean(norm) for norm in self._norms(training)]
        factors = []
        for own, norm in zip(self._whole, norms, strict=True):
            rates = [_learning_rate(training, layer) for layer in own.layers]
            step = sum(rates) / len(rates) * self._strength
            factors.append((1 - step * _roots(own, norm) / norm.clamp_min(1e-30)).clamp_min(0))
        if self.sparsity is not None:
            factors = self._controlled(norms, factors, self._wanted(training.step))
        keeps = self._choice.at_least(norms, [own > 0 for own in factors])
        pairs = zip(factors, keeps, strict=True)
        guarded = [own.where((own > 0) | ~keep, 1) for own, keep in pairs]
        for layer, factor in combined(self._whole, guarded):
            layer.weight_in(training.model).mul_(factor)

    def _wanted(self, step: int) -> float:
        """The share of zeros that there should be after a step."""
        first, last = self._window
        assert self.sparsity is not None
        assert last is not None
        return self.sparsity * (step + 1 - first) / (last - first)

    def _controlled(
        self, norms: list[Tensor], factors: list[Tensor], wanted: float
    ) -> list[Tensor]:
        """The factors, of which not too many are zero; the strength of the next step changes."""
        pairs = list(zip(self._whole, factors, strict=True))
        zeros = sum(int(own.sizes[factor == 0].sum()) for own, factor in pairs)
        if zeros < wanted * sum(own.weights for own in self._whole):
            self._strength = min(self._strength * self.growth, MAX_STRENGTH)
            return factors
        self._strength /= self.growth
        best = self._choice.best(self._scores(norms), wanted, together=True)
        return [factor.masked_fill(keep, 1) for factor, keep in zip(factors, best, strict=True)]

    def _norms(self, training: Training) -> list[Tensor]:
        """|w| of each group, [count] of each layer or site."""

        def squares(layer: TrainedLayer) -> Tensor:
            return full_precision(layer.weight_in(training.model)).square()

        return [own.sums(squares).sqrt() for own in self._whole]

    def _scores(self, norms: list[Tensor]) -> list[Tensor]:
        """|w| / sqrt(n), in the order of which groups become zero."""
        return [norm / _roots(own, norm) for own, norm in zip(self._whole, norms, strict=True)]

    def at_step(self, training: Training) -> None:
        if training.step != self._window[1] or self._is_settled:
            return
        norms = [training.mean(norm) for norm in self._norms(training)]
        keeps = [own > 0 for own in norms]
        if self.sparsity is not None:
            best = self._choice.best(self._scores(norms), self.sparsity, together=True)
            pairs = list(zip(keeps, best, strict=True))
            forced = sum(int((keep & ~own).sum()) for keep, own in pairs)
            training.note(
                self.name, f"{forced} groups above zero go, strength {self._strength:.3g}"
            )
            keeps = [keep & own for keep, own in pairs]
        self.settle(training, self._choice.at_least(norms, keeps))

    def finish(self, training: Training) -> None:
        super().finish(training)
        if self._is_settled:
            return
        if self.sparsity is not None:
            training.report.warnings.append(
                f"{self.name} stopped at step {training.step} of {self._window[1]}: only groups "
                f"that are zero by then are removed, not yet {self.sparsity}"
            )
        norms = self._norms(training)
        self.settle(training, self._choice.at_least(norms, [own > 0 for own in norms]))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"strength": self._strength}

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        super().load_state_dict(training, state)
        strength = state["strength"]
        if type(strength) is not float or not 0 <= strength <= max(MAX_STRENGTH, self.strength):
            raise InvalidFileError(
                f"the state of {self.name} is damaged: strength {strength!r:.40}"
            )
        self._strength = strength


def _roots(groups: WeightGroups, like: Tensor) -> Tensor:
    """The square roots of the numbers of weights, [count]."""
    return groups.sizes.to(like.dtype).sqrt()


def _learning_rate(training: Training, layer: TrainedLayer) -> float:
    """That of the optimizer for the parameter of a layer."""
    assert training.optimizer is not None
    parameter = training.model.get_parameter(layer.parameter)
    for group in training.optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return float(group["lr"])
    return 0.0
