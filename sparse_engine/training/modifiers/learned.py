"""The base of modifiers that learn which groups of weights are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.plan import Selection
from sparse_engine.structures import Structure
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.choice import Choice
from sparse_engine.training.learned.find import find_groups
from sparse_engine.training.learned.groups import (
    Values,
    WeightGroups,
    combined,
    full_precision,
)
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.training import Training

Groups = str | Granularity | Structure | tuple[str | Structure, ...]
"""A granularity, or one or several structures."""


class Learned(Modifier):
    """Something is learned in the window; from its end on the masks stay as they are.

    Attributes:
        granularity: what is removed together: "element", blocks such as "4x1", "row", "column", or
            the structures "head", "unit" and "filter", one or several of them. The weights of
            structures become zero, and the shapes of layers stay.
        layers: patterns of the layers, as `se.prune` takes them; none for the layers that it would
            prune.
        ignore: patterns of layers that are left in any case.
        max_sparsity: the highest fraction of its groups that a layer loses, whatever is learned;
            None for 0.98, or the sparsity of the recipe if that is higher. At least one group of
            each layer is kept. The report names the layers where this limit was in the way.
    """

    granularity: Groups = "element"
    layers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    max_sparsity: float | None = Field(default=None, gt=0, le=1)

    _groups: list[WeightGroups] = PrivateAttr(default_factory=list)
    _choice: Choice = PrivateAttr()
    _is_settled: bool = PrivateAttr(default=False)

    @property
    def wanted(self) -> float:
        """The sparsity that the recipe gives, or 0 if it is learned."""
        return getattr(self, "sparsity", None) or 0.0

    def begin(self, training: Training) -> None:
        super().begin(training)
        training.check_uncut(self.name)
        if self.max_sparsity is not None and self.wanted > self.max_sparsity:
            raise UsageError(
                f"{self.name}: sparsity {self.wanted} is out of reach with max_sparsity="
                f"{self.max_sparsity} of every layer"
            )
        selection = Selection.of(self.layers, self.ignore)
        self._groups = find_groups(training.model, self.granularity, selection, self.name)
        whole = {layer.name: layer for own in self._groups for layer in own.whole.layers}
        training.masks.add(whole.values(), self.name)
        self._choice = Choice(self._groups, self.max_sparsity, self.wanted)

    def is_learning(self, training: Training) -> bool:
        """Whether the next step lies before the end of the window."""
        last = self._window[1]
        return not self._is_settled and (last is None or training.step < last)

    def new_parameters(self, training: Training, value: float) -> list[Tensor]:
        """A number for each group of each layer, float32, or float64 if the weights are that."""
        found = []
        for own in self._groups:
            weight = full_precision(own.layers[0].weight_in(training.model)[:1])
            found.append(weight.new_full((own.count,), value))
        return found

    def settle(self, training: Training, keeps: Sequence[Tensor]) -> None:
        """Remove groups for good: all of their weights are zero and stay zero.

        Args:
            training: the state of the training.
            keeps: bool [count] of each layer or site.
        """
        for layer, keep in combined([own.whole for own in self._groups], keeps):
            layer.weight_in(training.model).mul_(keep)
            training.masks.set(layer, keep, training.optimizer)
        self._is_settled = True
        self.note(training, keeps)
        training.report.warnings += self._choice.warnings(self.name)

    def note(self, training: Training, keeps: Sequence[Tensor]) -> None:
        """Add to the report how many groups are removed."""
        removed = sum(int((~keep).sum()) for keep in keeps)
        total = sum(own.count for own in self._groups)
        one = self.granularity
        text = ", ".join(map(str, one)) if isinstance(one, tuple) else str(one)
        training.note(self.name, f"{removed} of {total} groups removed, {text}")

    def state_dict(self) -> dict[str, Any]:
        return {"settled": self._is_settled, "guarded": sorted(self._choice.guarded)}

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        settled, guarded = state["settled"], state["guarded"]
        numbers = range(len(self._groups))
        fits = isinstance(guarded, list) and all(type(i) is int and i in numbers for i in guarded)
        if not isinstance(settled, bool) or not fits:
            raise InvalidFileError(f"the state of {self.name} is damaged")
        self._is_settled, self._choice.guarded = settled, set(guarded)


def products(training: Training, weight: Values) -> Values:
    """W * dL/dW' of each weight of a layer, zero where the loss does not depend on it."""

    def of(layer: TrainedLayer) -> Tensor:
        values = full_precision(weight(layer))
        gradient = layer.gradient_in(training.model)
        return torch.zeros_like(values) if gradient is None else values * gradient

    return of
