"""The state of a Pruner, whose types and ranges are validated before anything is changed by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from torch import Tensor

from sparse_engine.training.report import TrainingReport
from sparse_engine.training.window import MAX_STEPS

VERSION = 1


@dataclass(frozen=True)
class PrunerState:
    """What `Pruner.state_dict` gives.

    Attributes:
        version: of the state.
        recipe: as plain values.
        step: how many steps of the optimizer are done.
        reached: the last step whose events happened; -1 before the first.
        cuts: what was left each time that structures were taken out.
        masks: by parameter, True where a weight is kept.
        generator: the state of the random numbers.
        modifiers: the state of each.
        report: what has happened.
    """

    __pydantic_config__: ClassVar = ConfigDict(arbitrary_types_allowed=True)

    version: Literal[1]
    recipe: dict[str, Any]
    step: Annotated[int, Field(strict=True, ge=0, le=MAX_STEPS)]
    reached: Annotated[int, Field(strict=True, ge=-1, le=MAX_STEPS)]
    cuts: list[dict[str, Any]]
    masks: dict[str, Tensor]
    generator: Tensor
    modifiers: list[dict[str, Any]]
    report: TrainingReport
