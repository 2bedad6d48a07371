"""Pruner: prunes a model inside of any training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sparse_engine.errors import InvalidFileError, UsageError, one_line
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.calibration import Batch, read_calibration
from sparse_engine.pruning.gradients import LossFunction, check_loss
from sparse_engine.pruning.gradients.loss import has_labels
from sparse_engine.pruning.method import check_seed
from sparse_engine.training.masks import Masks
from sparse_engine.training.rates import scaled_rates
from sparse_engine.training.recipe import read_training_recipe
from sparse_engine.training.report import TrainingReport
from sparse_engine.training.training import Training
from sparse_engine.training.window import steps_of

VERSION = 1  # of state dicts


class Pruner:
    """Prunes a model while it is trained, by a recipe.

    What is removed stays zero under every optimizer: after each step the masks are applied to the
    weights, before it to the gradients, and the state of the optimizer is cleared where a mask
    changes. A loop may use `loss`, or compute a loss of its own and call `step` alone.

    Args:
        model: the model to train, or one in a DistributedDataParallel. Weights that are computed
            before each call, such as those of weight norm, become plain parameters; make the
            optimizer afterwards.
        recipe: the path of a YAML file, a mapping, or a list of modifiers.
        teacher: the dense model, for distillation. It is set to evaluation mode.
        calibration: model inputs for criteria and recoveries that need some, as `prune` takes them.
        loss: loss(model, batch) returns the scalar that is minimised. None is the model's own loss,
            for batches with labels.
        steps_per_epoch: steps of the optimizer in an epoch, for recipes in epochs.
        seed: of the random numbers of the modifiers.

    Raises:
        UsageError: if an argument is wrong, or the recipe does not fit the model.

    Example:
        pruner = se.Pruner(model, "recipe.yaml", teacher=dense, steps_per_epoch=len(loader))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        while not pruner.is_done:
            for batch in loader:
                loss = pruner.loss(batch)
                loss.backward()
                pruner.step(optimizer)
        print(pruner.finalize())
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Any,
        teacher: nn.Module | None = None,
        calibration: Iterable[Any] | None = None,
        loss: LossFunction | None = None,
        steps_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        check_loss(loss)
        check_seed(seed)
        if not isinstance(model, nn.Module):
            raise UsageError(f"model is {model!r:.80}; give a torch.nn.Module")
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise UsageError(f"teacher is {teacher!r:.80}; give a torch.nn.Module")
        if steps_per_epoch is not None and (
            type(steps_per_epoch) is not int or steps_per_epoch < 1
        ):
            raise UsageError(f"steps_per_epoch {steps_per_epoch!r} is not a number of at least 1")
        self._wrapped = model
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        if teacher is plain:
            raise UsageError("teacher is the model itself: give a copy of the dense model")
        self.recipe = read_training_recipe(recipe)
        self._modifiers = self.recipe.modifiers
        end = self.recipe.end
        self._end = None if end is None else steps_of(end, steps_per_epoch)
        for modifier in self._modifiers:
            modifier.resolve(steps_per_epoch, self._end)
            if modifier.needs_teacher and teacher is None:
                raise UsageError(f"{modifier.name} needs the dense model: pass teacher=")
        check_readable(plain)
        fold_(plain)
        self._training = Training(
            plain,
            Masks(plain),
            TrainingReport(self.recipe.to_dict()),
            torch.Generator().manual_seed(seed),
            teacher.eval() if teacher is not None else None,
            list(calibration) if calibration is not None else [],
            loss,
            steps_per_epoch=steps_per_epoch,
            is_parallel=plain is not model,
            events=[(step, m.name) for m in self._modifiers for step in m.events],
        )
        for modifier in self._modifiers:
            modifier.begin(self._training)
        self._reached = -1  # the last step whose events happened
        self._checked: Optimizer | None = None
        self._is_final = False

    @property
    def is_done(self) -> bool:
        """Whether the end of the recipe is reached.

        Raises:
            UsageError: if the recipe has no end.
        """
        if self._end is None:
            raise UsageError("the recipe has no end: add one, such as 'end: 4ep', or count steps")
        return self._training.step >= self._end

    @property
    def steps(self) -> int:
        """How many steps of the optimizer are done."""
        return self._training.step

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the layers that the recipe prunes."""
        return self._training.masks.sparsity

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch: that of the task, and what the modifiers add to it.

        Args:
            batch: inputs of the model, as `prune` takes calibration inputs.

        Returns:
            A scalar; call `backward` on it.

        Raises:
            UsageError: if nothing gives a loss for the batch, or the model fails on it.
        """
        self._check_open()
        self._catch_up()
        training = self._training
        [item] = read_calibration(training.model, [batch], training.loss is not None)
        for modifier in self._modifiers:
            modifier.before_forward(training)
        with torch.enable_grad():
            loss, output = self._task_loss(item)
            for modifier in self._modifiers:
                loss = modifier.add_loss(training, item, output, loss)
        return loss

    def step(self, optimizer: Optimizer, scaler: Any = None) -> None:
        """One step of the optimizer: gradients and weights are masked, and gradients cleared.

        Args:
            optimizer: holds the parameters of the model; it may hold others too.
            scaler: a torch.amp.GradScaler, if the loss was scaled.

        Raises:
            UsageError: if the optimizer does not hold the weights of a layer that is pruned.
        """
        self._check_open()
        training = self._training
        training.optimizer = optimizer
        self._check_optimizer(optimizer)
        self._catch_up()
        if scaler is not None:
            scaler.unscale_(optimizer)
        training.rate = 1.0
        with torch.no_grad():
            for modifier in self._modifiers:
                modifier.before_step(training)
        training.masks.apply_to_gradients()
        with scaled_rates(optimizer, training.rate):
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            training.masks.apply_to_weights()
            with torch.no_grad():
                for modifier in self._modifiers:
                    modifier.after_step(training)
        optimizer.zero_grad()
        training.step += 1
        self._catch_up()

    def finalize(self) -> TrainingReport:
        """End the training: the model is a plain one, whose removed weights are zero.

        Returns:
            What happened; its warnings name what the recipe did not reach.
        """
        self._check_open()
        training = self._training
        self._catch_up()
        with torch.no_grad():
            for modifier in self._modifiers:
                modifier.finish(training)
        training.masks.apply_to_weights()
        training.report.steps = training.step
        training.report.sparsity = training.masks.sparsities
        self._is_final = True
        return training.report

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training that goes on needs beside the model and the optimizer.

        It holds tensors, numbers and texts, so that torch.load reads it with weights_only=True.
        """
        return {
            "version": VERSION,
            "recipe": self.recipe.to_dict(),
            "step": self._training.step,
            "reached": self._reached,
            "masks": self._training.masks.state_dict(),
            "generator": self._training.generator.get_state(),
            "modifiers": [modifier.state_dict() for modifier in self._modifiers],
            "report": self._training.report.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another `Pruner` of the same recipe was.

        Load the state of the model before, and that of the optimizer too.

        Args:
            state: what `state_dict` gave.

        Raises:
            InvalidFileError: if it is no such state, or one of another recipe or model.
        """
        names = ("step", "reached", "masks", "generator", "modifiers", "report")
        if not isinstance(state, dict) or state.get("version") != VERSION:
            raise InvalidFileError("this is no state of a Pruner")
        if missing := [name for name in names if name not in state]:
            raise InvalidFileError(f"the state of the Pruner lacks {missing[0]!r}")
        if state.get("recipe") != self.recipe.to_dict():
            raise InvalidFileError("the state is that of another recipe; give the Pruner that one")
        training = self._training
        training.masks.load_state_dict(state["masks"])
        training.generator.set_state(state["generator"])
        training.step, self._reached = int(state["step"]), int(state["reached"])
        for modifier, own in zip(self._modifiers, state["modifiers"], strict=True):
            modifier.load_state_dict(training, own)
        training.report = TrainingReport.of(state["report"])

    def _catch_up(self) -> None:
        """Let the events of the present step happen, once."""
        training = self._training
        if self._reached == training.step:
            return
        self._reached = training.step
        with torch.no_grad():
            for modifier in self._modifiers:
                modifier.at_step(training)

    def _task_loss(self, batch: Batch) -> tuple[Tensor, Any]:
        """The loss of the task and the output of the model; 0 if only modifiers give a loss."""
        training = self._training
        if training.loss is not None:
            outputs: list[Any] = []
            hook = training.model.register_forward_hook(lambda m, args, y: outputs.append(y))
            try:
                with one_line("the function given as loss fails on a batch"):
                    loss = training.loss(self._wrapped, batch.item)
            finally:
                hook.remove()
            return _checked(loss), outputs[-1] if outputs else None
        with one_line(f"{type(training.model).__name__} fails on a batch"):
            output = self._wrapped(*batch.args, **batch.kwargs)
        if has_labels(batch):
            own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
            if own is None:
                raise UsageError(
                    f"the batch holds labels, but {type(training.model).__name__} returns no loss "
                    "for them; pass loss=, a function of the model and a batch"
                )
            return _checked(own), output
        if not any(modifier.gives_loss for modifier in self._modifiers):
            raise UsageError(
                "nothing gives a loss: put labels into the batch, pass loss=, or add distil to the "
                "recipe"
            )
        return next(training.model.parameters()).new_zeros(()), output

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise UsageError unless the optimizer holds the layers that are pruned."""
        if optimizer is self._checked:
            return
        if not isinstance(optimizer, Optimizer):
            raise UsageError(f"optimizer is {optimizer!r:.80}; give a torch.optim.Optimizer")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        training = self._training
        for layer in training.masks.layers:
            parameter = training.model.get_parameter(layer.parameter)
            if parameter.requires_grad and id(parameter) not in held:
                raise UsageError(
                    f"the optimizer does not hold {layer.parameter}: make it from the parameters "
                    "of this model, after the Pruner"
                )
        self._checked = optimizer

    def _check_open(self) -> None:
        if self._is_final:
            raise UsageError("this Pruner is finalized: make another one to train on")


def _checked(loss: Any) -> Tensor:
    """A loss that is a finite scalar with a gradient; raises UsageError."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise UsageError(f"the loss is {loss!r:.60}; expected a scalar tensor")
    if not loss.isfinite():
        raise UsageError(f"the loss is {loss.item()}: lower the learning rate, or check the batch")
    return loss.reshape(())
