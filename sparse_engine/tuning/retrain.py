"""Retrain: the training between two rounds, with a recipe and the dense model as the teacher."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparse_engine.errors import UsageError
from sparse_engine.pruning.gradients import LossFunction, check_loss
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.training import Pruner, read_training_recipe
from sparse_engine.training.window import steps_of

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Retrain:
    """Steps of an optimizer after each pruning, while what is removed stays zero.

    Without a recipe the zeros are held, the outputs of the dense model are the labels, and the
    learning rate falls to zero on a line. The batches are shuffled before each pass over them.

    Attributes:
        batches: inputs of the model, as `prune` takes calibration inputs.
        steps: of the optimizer, in each round.
        learning_rate: of AdamW.
        recipe: as `Pruner` takes it. It begins anew in each round, and ends after `steps`.
        loss: loss(model, batch), as `Pruner` takes it.
        optimizer: optimizer(parameters) makes another one than AdamW, which `learning_rate` is not
            given to.
        dropout: whether the model is in training mode, with dropout and moving means of batch
            norms. The outputs of the dense model are met more closely without.

    Raises:
        UsageError: if a value is out of range, or the recipe is wrong.

    Example:
        se.prune_until(model, accuracy, train=se.Retrain(batches, steps=200))
    """

    batches: Sequence[Any]
    steps: int = 100
    learning_rate: float = 1e-4
    recipe: Any = None
    loss: LossFunction | None = None
    optimizer: MakeOptimizer | None = None
    dropout: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.batches, Sequence) or isinstance(self.batches, str):
            raise UsageError("Retrain batches: give a list of model inputs, such as list(loader)")
        if not self.batches:
            raise UsageError("Retrain batches are empty; give at least one batch of model inputs")
        if type(self.steps) is not int or self.steps < 1:
            raise UsageError(f"Retrain steps {self.steps!r:.40}: give a whole number from 1 up")
        rate = self.learning_rate
        if not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise UsageError(f"Retrain learning_rate {rate!r:.40}: give a number above 0")
        check_loss(self.loss)
        if self.recipe is not None and (end := read_training_recipe(self.recipe).end) is not None:
            last = steps_of(end, len(self.batches))
            if last != self.steps:
                raise UsageError(
                    f"Retrain has {self.steps} steps, its recipe {last}: give the same"
                )

    def run(
        self,
        model: nn.Module,
        dense: nn.Module,
        has_zeros: bool,
        seed: int,
        progress: ProgressCallback,
    ) -> None:
        """Train a model in place.

        Args:
            model: after pruning. Its mode is changed.
            dense: the teacher.
            has_zeros: whether weights were set to zero, which are held then.
            seed: of the order of the batches, and of the modifiers.
            progress: called with (done, total, text) after each step.
        """
        pruner = Pruner(
            model,
            self._recipe(has_zeros),
            teacher=dense,
            calibration=self.batches,
            loss=self.loss,
            steps_per_epoch=len(self.batches),
            seed=seed,
        )
        parameters = [p for p in model.parameters() if p.requires_grad]
        make = self.optimizer or self._adamw
        optimizer = make(parameters)
        model.train(self.dropout)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the model is trained in evaluation mode")
            for step, batch in enumerate(self._shuffled(seed), 1):
                loss = pruner.loss(batch)
                loss.backward()
                pruner.step(optimizer)
                progress(step, self.steps, f"training, loss {float(loss.detach()):.4g}")
        pruner.finalize()

    def _recipe(self, has_zeros: bool) -> Any:
        """Modifiers without the state of an earlier round."""
        if self.recipe is not None:
            return {**read_training_recipe(self.recipe).to_dict(), "end": self.steps}
        modifiers = [{"distil": {}}, {"learning_rate": {"schedule": "linear"}}]
        if has_zeros:
            modifiers.insert(0, {"hold": {}})
        return {"end": self.steps, "modifiers": modifiers}

    def _adamw(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(parameters, lr=self.learning_rate)

    def _shuffled(self, seed: int) -> Iterator[Any]:
        """As many batches as steps, each pass over them in an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        for _ in range(self.steps):
            order = order or torch.randperm(len(self.batches), generator=generator).tolist()
            yield self.batches[order.pop()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the batches and functions."""
        recipe = None if self.recipe is None else read_training_recipe(self.recipe).to_dict()
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "recipe": recipe,
            "dropout": self.dropout,
        }
