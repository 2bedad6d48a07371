"""Pruner: prunes a model inside of any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.calibration import read_calibration
from sparse_engine.pruning.gradients import LossFunction, check_loss
from sparse_engine.pruning.seed import check_seed
from sparse_engine.reporting.values import checked
from sparse_engine.structures.snapshot import unchanged_after_error
from sparse_engine.training.attached import Attached
from sparse_engine.training.kept import Kept
from sparse_engine.training.masks import Masks
from sparse_engine.training.rates import scaled_rates
from sparse_engine.training.recipe import read_training_recipe
from sparse_engine.training.report import TrainingReport
from sparse_engine.training.state import VERSION, PrunerState
from sparse_engine.training.task_loss import task_loss
from sparse_engine.training.training import Training
from sparse_engine.training.window import steps_of
from sparse_engine.training.wrapped import check_apart, plain_model, plain_optimizer


class Pruner:
    """Prunes a model while it is trained, by a recipe.

    What is removed stays zero under every optimizer: after each step the masks are applied to the
    weights, before it to the gradients, and the state of the optimizer is cleared where a mask
    changes. A loop may use `loss`, or compute a loss of its own and call `step` alone. Where
    another library makes the steps, `attach` takes the place of `step`.

    Args:
        model: the model to train, plain, compiled or in a DistributedDataParallel. Weights that are
            computed before each call, such as those of weight norm, become plain parameters; make
            the optimizer afterwards.
        recipe: the path of a YAML file, a mapping, or a list of modifiers.
        teacher: the dense model, for distillation. It is set to evaluation mode, and moves to the
            device of the model.
        calibration: model inputs for criteria and recoveries that need some, as `prune` takes them.
        loss: loss(model, batch) returns the scalar that is minimised, or None for a batch without
            labels. By default it is the model's own loss, for batches with labels.
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
        plain = plain_model(model)
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise UsageError(f"teacher is {teacher!r:.80}; give a torch.nn.Module")
        if steps_per_epoch is not None and (
            type(steps_per_epoch) is not int or steps_per_epoch < 1
        ):
            raise UsageError(f"steps_per_epoch {steps_per_epoch!r} is not a number of at least 1")
        self._wrapped = model
        check_apart(plain, teacher)
        self.recipe = read_training_recipe(recipe)
        self._modifiers = self.recipe.modifiers
        end = self.recipe.end
        self._end = None if end is None else steps_of(end, steps_per_epoch)
        if self._end == 0:
            raise UsageError(f"the recipe ends at {end}, before the first step")
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
            events=[(step, m.name) for m in self._modifiers for step in m.events],
        )
        for modifier in self._modifiers:
            modifier.begin(self._training)
        self._reached = -1  # the last step whose events happened
        self._acted = 0  # how many modifiers have had their events of the next step
        self._prepared = -1  # the last step whose gradients were masked
        self._attached: Attached | None = None
        self._rates = ExitStack()  # the learning rates of the present step
        self._is_warned = False
        self._closed = ""  # why it can train no longer

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

    def loss(self, batch: Any, model: nn.Module | None = None) -> Tensor:
        """The loss of a batch: that of the task, and what the modifiers add to it.

        Args:
            batch: inputs of the model, as `prune` takes calibration inputs.
            model: what is called, if the model was wrapped after the Pruner was made.

        Returns:
            A scalar; call `backward` on it.

        Raises:
            UsageError: if nothing gives a loss for the batch, it cannot be trained on, or the model
                fails on it.
        """
        self._check_open()
        self._catch_up()
        self._check_mode()
        training = self._training
        [item] = read_calibration(training.model, [batch], training.loss is not None)
        for modifier in self._modifiers:
            modifier.before_forward(training)
        with torch.enable_grad():
            called = self._wrapped if model is None else model
            loss, output = task_loss(training, called, item, self._distils)
            for modifier in self._modifiers:
                loss = modifier.add_loss(training, item, output, loss)
        if not loss.requires_grad:
            raise UsageError(
                "the loss has no gradient: call model.requires_grad_(True) before the training; "
                "packages are loaded for inference, and sparse layers cannot be trained"
            )
        return loss

    def step(self, optimizer: Any, scaler: Any = None) -> None:
        """One step of the optimizer: gradients and weights are masked, and gradients cleared.

        Args:
            optimizer: holds the parameters of the model; it may hold others too.
            scaler: a torch.amp.GradScaler, if the loss was scaled. A step that it skips, because a
                gradient is infinite, does not count.

        Raises:
            UsageError: if the optimizer does not hold the weights of a layer that is pruned.
        """
        if not isinstance(scaler, torch.amp.GradScaler | None):
            raise UsageError(f"scaler is {scaler!r:.40}; give a torch.amp.GradScaler")
        self.attach(optimizer)
        with self._rates:  # closed in any case
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        if plain_optimizer(optimizer) is not optimizer:  # a wrapper may change weights afterwards
            self._training.masks.apply_to_weights()
        optimizer.zero_grad()

    def attach(self, optimizer: Any) -> None:
        """Prune at every step of an optimizer from now on, whoever calls `optimizer.step()`.

        Args:
            optimizer: as in `step`, or one in a wrapper of accelerate or Lightning. It takes the
                place of an optimizer that was attached before.

        Raises:
            UsageError: as `step`.

        Example:
            pruner.attach(optimizer)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        """
        self._check_open()
        optimizer = plain_optimizer(optimizer)
        if self._attached is None or self._attached.optimizer is not optimizer:
            attached = Attached(optimizer, self._before_step, self._after_step)
            try:
                self._training.adopt(optimizer)
                self._check_optimizer(optimizer)
            except UsageError:
                attached.remove()
                raise
            if self._attached is not None:
                self._attached.remove()
            self._attached = attached
        self._catch_up()

    def _before_step(self) -> None:
        """Gradients are complete."""
        training = self._training
        if self._prepared < training.step:  # an optimizer may call the step of its base class
            self._prepared = training.step
            training.rate = 1.0
            with torch.no_grad():
                for modifier in self._modifiers:
                    modifier.before_step(training)
            self._rates.close()
            if training.optimizer is not None:
                self._rates.enter_context(scaled_rates(training.optimizer, training.rate))
        training.masks.apply_to_gradients()

    def _after_step(self) -> None:
        """The weights have changed."""
        training = self._training
        training.masks.apply_to_weights()
        if self._prepared < training.step:  # this step was counted
            return
        with torch.no_grad():
            for modifier in self._modifiers:
                modifier.after_step(training)
        self._rates.close()
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
        if self._attached is not None:
            self._attached.remove()
        self._closed = "is finalized"
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
            "cuts": [kept.to_dict() for kept in self._training.cuts],
            "masks": self._training.masks.state_dict(),
            "generator": self._training.generator.get_state(),
            "modifiers": [modifier.state_dict() for modifier in self._modifiers],
            "report": self._training.report.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another `Pruner` of the same recipe was.

        With `cut` in the recipe, make the Pruner of the model as it was before the training. This
        takes out the same structures again. Then load the state of the model, make the optimizer,
        and load its state.

        Args:
            state: what `state_dict` gave.

        Raises:
            InvalidFileError: if it is no such state, or one of another recipe or model. The model
                is as before then; make another Pruner.
        """
        self._check_open()
        if not isinstance(state, dict):
            raise InvalidFileError("this is no state of a Pruner")
        found = checked(PrunerState, state, "state of a Pruner")
        if found.recipe != self.recipe.to_dict():
            raise InvalidFileError("the state is that of another recipe; give the Pruner that one")
        self._closed = "could not load a state"  # until it has; the modifiers may have parts of it
        try:
            with unchanged_after_error(self._training.model):
                self._restore(found)
        except SparseEngineError:
            raise
        except Exception as error:
            raise InvalidFileError(f"the state of the Pruner is damaged: {error}") from error
        self._closed = ""

    def _restore(self, state: PrunerState) -> None:
        training = self._training
        if len(state.modifiers) != len(self._modifiers) or state.reached > state.step:
            raise InvalidFileError("the state of the Pruner is damaged: its parts do not agree")
        training.restore([Kept.from_dict(kept) for kept in state.cuts])
        training.masks.load_state_dict(state.masks)
        training.generator.set_state(state.generator)
        training.step, self._reached = state.step, state.reached
        self._acted, self._prepared = 0, training.step - 1
        for modifier, own in zip(self._modifiers, state.modifiers, strict=True):
            modifier.load_state_dict(training, own)
        training.report = state.report

    def _catch_up(self) -> None:
        """Let the events of the present step happen, each once, also if one is interrupted."""
        training = self._training
        if self._reached == training.step:
            return
        with torch.no_grad():
            for modifier in self._modifiers[self._acted :]:
                with training.masks.unchanged_after_error():
                    modifier.at_step(training)
                self._acted += 1
        self._reached, self._acted = training.step, 0

    @property
    def _distils(self) -> bool:
        """Whether a modifier gives a loss of its own now."""
        return any(part.gives_loss and part.is_active(self._training) for part in self._modifiers)

    def _check_mode(self) -> None:
        """Warn once if the model is trained in evaluation mode, and that makes a difference.

        Distillation is often better without dropout, so that it gives no warning.
        """
        model = self._training.model
        if model.training or self._is_warned or self._distils:
            return
        self._is_warned = True
        if any(isinstance(module, _DropoutNd | _BatchNorm) for module in model.modules()):
            warnings.warn(
                "the model is trained in evaluation mode, so without dropout: call model.train(), "
                "unless that is wanted",
                stacklevel=3,
            )

    def _check_optimizer(self, optimizer: Any) -> None:
        """Raise UsageError unless the optimizer holds the layers that are pruned."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        training = self._training
        for layer in training.masks.layers:
            parameter = training.model.get_parameter(layer.parameter)
            if parameter.requires_grad and id(parameter) not in held:
                raise UsageError(
                    f"the optimizer does not hold {layer.parameter}: make it from the parameters "
                    "of this model, after the Pruner"
                )

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"this Pruner {self._closed}: make another one to train on")
