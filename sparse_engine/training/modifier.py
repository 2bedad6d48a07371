"""The interface of a modifier: one thing that happens to a model while it is trained."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationInfo, field_validator
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch
from sparse_engine.training.training import Training
from sparse_engine.training.window import Moment, steps_of


class Modifier(BaseModel, ABC):
    """A part of a recipe, with its options as fields and its state as private attributes.

    The `Pruner` calls the methods below in the order in which they stand here. By default they do
    nothing.

    Attributes:
        name: what it is called in recipes and reports.
        start: when it begins, in steps or epochs.
        end: when it ends; None is the end of the recipe, if that has one.
    """

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,
        allow_inf_nan=False,
    )
    name: ClassVar[str]
    start: Moment = 0
    end: Moment | None = None

    _window: tuple[int, int | None] = PrivateAttr(default=(0, None))

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and bool not in get_args(field.annotation):
            raise ValueError(f"expected no {str(value).lower()}")
        return value

    def begin(self, training: Training) -> None:
        """Called once, before the first step; also when a stopped training goes on.

        Raises:
            UsageError: if the modifier does not fit the model.
        """

    def at_step(self, training: Training) -> None:
        """Called when `training.step` steps are done, the next one has not begun."""

    def before_forward(self, training: Training) -> None:
        """Called before the loss is computed, several times a step if gradients accumulate."""

    def add_loss(self, training: Training, batch: Batch, output: Any, loss: Tensor) -> Tensor:
        """The loss with what the modifier adds to it.

        Args:
            training: the state of the training.
            batch: the inputs of the model.
            output: what the model returned for them.
            loss: a scalar, so far.
        """
        return loss

    def before_step(self, training: Training) -> None:
        """Called when gradients are complete and not masked yet, before the optimizer's step."""

    def after_step(self, training: Training) -> None:
        """Called after the optimizer's step; the masks have been applied."""

    def finish(self, training: Training) -> None:
        """Called once at the end; what the modifier put into the model is removed."""

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on needs: tensors, numbers, texts, lists and dicts of them."""
        return {}

    def load_state_dict(self, training: Training, state: dict[str, Any]) -> None:
        """Take over the state of a training that was stopped; `begin` has been called."""

    @property
    def events(self) -> tuple[int, ...]:
        """The steps at which it prunes, ascending, when `resolve` has been called."""
        return ()

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model is run beside the one that is trained."""
        return False

    @property
    def gives_loss(self) -> bool:
        """Whether `add_loss` is a loss by itself, so that batches need no labels."""
        return False

    def resolve(self, steps_per_epoch: int | None, end: int | None) -> None:
        """Turn the window into steps.

        Args:
            steps_per_epoch: how many steps an epoch has, if that is known.
            end: of the recipe, in steps.

        Raises:
            UsageError: if it ends before it begins, or epochs cannot be turned into steps.
        """
        first = steps_of(self.start, steps_per_epoch)
        last = end if self.end is None else steps_of(self.end, steps_per_epoch)
        if last is not None and last < first:
            raise UsageError(f"{self.name} ends at step {last}, before it starts at step {first}")
        if end is not None and last is not None and last > end:
            raise UsageError(f"{self.name} ends at step {last}, after the recipe, at step {end}")
        self._window = first, last

    def is_active(self, training: Training) -> bool:
        """Whether the next step lies in the window."""
        first, last = self._window
        return first <= training.step and (last is None or training.step < last)
