"""Freeze: weights that keep their values for a while, whatever the optimizer does.

With it a recipe can prune incrementally: what matters most is frozen, the rest is pruned further
and trained at a low learning rate, then all is trained again at a higher one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning.plan import Selection, make_plan
from sparse_engine.training.change import Change
from sparse_engine.training.layers import TrainedLayer, trained_layers
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.training import Training


class Freeze(Modifier):
    """From `start` to `end` the largest weights of layers keep their values, bit by bit.

    Their gradients are zero for the optimizer, so that its momentum fades, and after each step they
    get their values back, which weight decay may have changed. Modifiers may still remove them, and
    a recovery may still refit them. Put it behind modifiers that change weights after a step.

    Attributes:
        share: of the weights of each layer that are not zero, the largest ones; 1 for all weights.
        layers: patterns of the layers, as `se.prune` takes them; none for the layers that it would
            prune.
        ignore: patterns of layers that are left in any case.

    Example:
        Freeze(share=0.5, start="1ep", end="2ep")
    """

    name: ClassVar[str] = "freeze"
    share: float = Field(default=1.0, gt=0, le=1)
    layers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    _layers: list[TrainedLayer] = PrivateAttr(default_factory=list)
    _frozen: dict[str, Tensor] = PrivateAttr(default_factory=dict)  # bool, by parameter
    _values: dict[str, Tensor] = PrivateAttr(default_factory=dict)  # before the step

    def begin(self, training: Training) -> None:
        self._find_layers(training)
        training.followers.append(lambda change: self._follow(training, change))

    def _follow(self, training: Training, change: Change) -> None:
        self._find_layers(training)
        self._frozen = change.carry(self._frozen)

    def _find_layers(self, training: Training) -> None:
        selection = Selection.of(self.layers, self.ignore)
        self._layers = trained_layers(
            training.model, lambda model: make_plan(model, selection=selection)
        )

    def at_step(self, training: Training) -> None:
        first, last = self._window
        if training.step == first and last != first:
            for layer in self._layers:
                parameter = training.model.get_parameter(layer.parameter).detach()
                frozen = self._frozen.setdefault(
                    layer.parameter, torch.zeros_like(parameter, dtype=torch.bool)
                )
                layer.view(frozen).copy_(largest(layer.view(parameter), self.share))
            training.note(self.name, f"{self.share:.3g} of the weights are frozen")
        if training.step == last and self._frozen:
            self._frozen = {}
            training.note(self.name, "all weights are trained again")

    def before_step(self, training: Training) -> None:
        for name, frozen in self._frozen.items():
            parameter = training.model.get_parameter(name)
            self._values[name] = parameter.detach().clone()
            if parameter.grad is not None:
                parameter.grad.masked_fill_(frozen, 0)

    def after_step(self, training: Training) -> None:
        for name, frozen in self._frozen.items():
            parameter = training.model.get_parameter(name)
            parameter.copy_(torch.where(frozen, self._values.pop(name), parameter))

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": {name: frozen.clone() for name, frozen in self._frozen.items()}}

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        parameters = dict(training.model.named_parameters())
        self._frozen = {}
        for name, frozen in state["frozen"].items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != frozen.shape or frozen.dtype != torch.bool:
                raise InvalidFileError(f"the state freezes weights of {name!r}, which do not fit")
            self._frozen[name] = torch.empty_like(parameter, dtype=torch.bool).copy_(frozen)


def largest(weight: Tensor, share: float) -> Tensor:
    """Where the largest weights are, bool [out, in].

    Args:
        weight: [out, in].
        share: of the weights that are not zero; 1 is all weights, zeros too.
    """
    if share == 1:
        return torch.ones_like(weight, dtype=torch.bool)
    size = weight.abs().float()
    count = round(share * int((size > 0).sum()))
    chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    chosen[size.flatten().topk(count).indices] = True
    return chosen.view(weight.shape)
