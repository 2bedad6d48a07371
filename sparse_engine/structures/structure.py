"""Structures: what is removed as a whole, by the text forms that granularities have too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparse_engine.errors import UsageError
from sparse_engine.named import Named


@dataclass(frozen=True)
class Structure(Named):
    """Groups of rows and columns that several layers share.

    Args:
        round_to: the number of groups that are kept is a multiple of it where there are as many.
        keep: the fewest groups of a site that are kept.

    Raises:
        UsageError: if one of them is less than 1.
    """

    kind = "structure"
    round_to: int = 1
    keep: int = 1

    def __post_init__(self) -> None:
        for option in ("round_to", "keep"):
            value = getattr(self, option)
            if value < 1:
                raise UsageError(f"structure {self.name}: {option}={value} is less than 1")

    def kept(self, groups: int, wanted: float) -> int:
        """How many groups of a site are kept.

        Args:
            groups: how many there are.
            wanted: how many would be kept without the options.
        """
        count = max(round(wanted), self.keep)
        if self.round_to > 1 and groups > self.round_to:
            count = self.round_to * max(round(count / self.round_to), 1)
        return min(count, groups)


@dataclass(frozen=True)
class Head(Structure):
    """Attention heads. Where heads share keys and values, all that share go together."""

    name: ClassVar[str] = "head"


@dataclass(frozen=True)
class Unit(Structure):
    """Hidden units: of feed-forwards, recurrent networks, and chains of linear layers."""

    name: ClassVar[str] = "unit"
    keep: int = 16


STRUCTURES: tuple[type[Structure], ...] = (Head, Unit)
