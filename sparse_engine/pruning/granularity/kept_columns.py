"""KeptColumns: a keep mask of columns that has been decided."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparse_engine.pruning.granularity.base import Granularity


@dataclass(frozen=True, eq=False)
class KeptColumns(Granularity):
    """The whole columns that remain of a layer.

    Attributes:
        name: text form of the structure that they belong to.
        keep: bool [in].
    """

    name: str
    keep: Tensor

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, text: str) -> None:
        return None

    @property
    def fixed_sparsity(self) -> float:
        return float((~self.keep).float().mean())

    def span(self, in_features: int) -> int:
        return 1

    def groups(self, out_features: int, in_features: int) -> int:
        return in_features

    def fits(self, out_features: int, in_features: int) -> bool:
        return in_features == len(self.keep)

    def mask(self, score: Tensor, drop: int, per_row: bool = False) -> Tensor:
        return self.keep.to(score.device).expand_as(score).clone()
