"""Pruning in a transformers.Trainer: a callback that prunes, and a Trainer that also distils."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from sparse_engine.errors import InvalidFileError
from sparse_engine.training.pruner import Pruner

STATE = "pruner.pt"  # in the folder of a checkpoint


class PrunerCallback(TrainerCallback):
    """Prunes at every step of the Trainer's optimizer.

    The loss stays that of the Trainer, so modifiers that add to it need a `PrunerTrainer`. The
    state is saved into each checkpoint, and read when the training goes on from one in
    `output_dir`. Gradients are clipped before removed weights are left out.

    Args:
        pruner: made for the model of the Trainer.

    Example:
        pruner = se.Pruner(model, "recipe.yaml")
        Trainer(model, arguments, train_dataset=data, callbacks=[PrunerCallback(pruner)]).train()
        print(pruner.finalize())
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step and not self.pruner.steps:
            path = _path(args, state)
            try:
                saved = torch.load(path, weights_only=True)
            except Exception as error:
                raise InvalidFileError(
                    f"{path} cannot be read, so the Pruner cannot go on from step "
                    f"{state.global_step}: {type(error).__name__}"
                ) from error
            self.pruner.load_state_dict(saved)
        self.pruner.attach(optimizer)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = _path(args, state)
        if args.should_save and path.parent.is_dir():
            draft = path.with_name(f".{STATE}.tmp")
            torch.save(self.pruner.state_dict(), draft)
            os.replace(draft, path)


class PrunerTrainer(Trainer):
    """A Trainer whose loss is `pruner.loss`, for distillation and other modifiers that add to it.

    In evaluation the loss is that of the Trainer.

    Args:
        pruner: made for the model of the Trainer.
        args, kwargs: of the Trainer.

    Example:
        pruner = se.Pruner(model, [{"prune": {"sparsity": 0.8}}, {"distil": {}}], teacher=dense)
        PrunerTrainer(model, arguments, train_dataset=data, pruner=pruner).train()
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over the batch

    def __init__(self, *args: Any, pruner: Pruner, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pruner = pruner
        self.model_accepts_loss_kwargs = False  # of versions without loss_is_scaled_for_ga
        self.add_callback(PrunerCallback(pruner))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self.pruner.loss(dict(inputs), model)


def _path(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
