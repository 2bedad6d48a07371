"""Pruning in a Lightning Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from sparse_engine.training.pruner import Pruner


class PrunerCallback(Callback):
    """Prunes at every step of the Trainer's optimizer; its state is part of each checkpoint.

    `training_step` returns `pruner.loss(batch)`, or a loss of its own if no modifier adds to it.

    Args:
        pruner: made for the model that is trained, before the Trainer makes the optimizer.

    Example:
        pruner = se.Pruner(module.model, "recipe.yaml", teacher=dense)
        Trainer(max_epochs=3, callbacks=[PrunerCallback(pruner)]).fit(module, loader)
        print(pruner.finalize())
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.pruner.attach(trainer.optimizers[0])

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state_dict)
