"""Layout: how a tool stores a pruned model, and how the plain weights are read from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sparse_engine.io.tensorfile import Slot


@dataclass(frozen=True)
class Layout(ABC):
    """A layout as config.json describes it.

    Attributes:
        config: config.json without the keys of the layout, as a plain checkpoint has it.
    """

    title: ClassVar[str]
    config: dict[str, Any]

    @abstractmethod
    def plain_slots(self, slots: Mapping[str, Slot]) -> dict[str, Slot]:
        """The plain tensors, with at least as many elements as they will have.

        Only headers are read, so that sizes are bounded before anything is allocated.

        Args:
            slots: The tensors of the files by name.

        Raises:
            InvalidFileError: A tensor is missing, or has a dtype or a shape that cannot be.
        """

    @abstractmethod
    def plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The plain state dict; tensors are removed from `state` as they are read.

        Raises:
            InvalidFileError: Tensors contradict each other.
        """

    def __str__(self) -> str:
        """What the layout is, for reports."""
        return self.title
