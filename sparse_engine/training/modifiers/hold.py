"""Hold: the zeros that a model has when the training begins stay zero."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PrivateAttr

from sparse_engine.errors import UsageError
from sparse_engine.pruning.plan import Selection, make_plan
from sparse_engine.training.layers import TrainedLayer, trained_layers
from sparse_engine.training.modifier import Modifier
from sparse_engine.training.training import Training


class Hold(Modifier):
    """The masks of a model that was pruned before, by whatever tool.

    Layers without a zero are left alone. From `end` on, if there is one, all weights are trained.

    Attributes:
        layers: patterns of the layers, as `se.prune` takes them; none for the layers that it would
            prune.
        ignore: patterns of layers that are left in any case.

    Example:
        se.prune(model, 0.9, "4x1", "obs", recovery="least_squares", calibration=batches)
        pruner = se.Pruner(model, [Hold(), Distil()], teacher=dense)
    """

    name: ClassVar[str] = "hold"
    layers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    _layers: list[TrainedLayer] = PrivateAttr(default_factory=list)

    def begin(self, training: Training) -> None:
        training.check_uncut(self.name)
        selection = Selection.of(self.layers, self.ignore)
        found = trained_layers(training.model, lambda model: make_plan(model, selection=selection))
        parameters = dict(training.model.named_parameters())
        self._layers = [
            layer for layer in found if not layer.view(parameters[layer.parameter].detach()).all()
        ]
        if not self._layers:
            raise UsageError(
                f"{self.name}: no layer has a weight that is zero; prune the model first"
            )
        training.masks.add(self._layers)

    def at_step(self, training: Training) -> None:
        first, last = self._window
        if training.step == first:
            training.masks.take(self._layers, training.optimizer)
            count = len(self._layers)
            training.note(self.name, f"the zeros of {count} layer{'s' if count > 1 else ''}")
        if last is not None and training.step == last and self.end is not None:
            training.masks.release(self._layers)
            training.note(self.name, "all weights are trained again")
