"""The interface of a granularity: element scores [out, in] in, a keep mask [out, in] out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor


class Granularity(ABC):
    """Groups of weights that are kept or removed together.

    A granularity is independent of the criterion that computes the scores.

    Attributes:
        text_form: the text that `parse` reads, as error messages show it.
    """

    text_form: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self | None:
        """Return the granularity of a text form, or None if the text has another form."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity that the pattern fixes, or None if any sparsity is possible."""
        return None

    @property
    def has_whole_rows(self) -> bool:
        """Whether every group consists of whole output rows."""
        return False

    @abstractmethod
    def span(self, in_features: int) -> int:
        """Number of input columns that one group covers in a weight [out, in]."""

    @abstractmethod
    def groups(self, out_features: int, in_features: int) -> int:
        """Number of groups in a weight [out, in]; a partial group at an edge counts as one."""

    @abstractmethod
    def fits(self, out_features: int, in_features: int) -> bool:
        """Whether at least one whole group fits into a weight [out, in]."""

    def group_scores(self, score: Tensor) -> Tensor:
        """Score of each group.

        Every granularity without a fixed sparsity has this method. With a fixed sparsity the groups
        of a weight do not compete, so they need no scores.

        Args:
            score: [out, in], importance of each weight.

        Returns:
            [rows of groups, ceil(in / span)].
        """
        raise NotImplementedError(f"{self} fixes the sparsity of every group")

    @abstractmethod
    def mask(self, score: Tensor, drop: int, per_row: bool = False) -> Tensor:
        """Keep mask without the groups of the lowest scores.

        Args:
            score: [out, in], importance of each weight.
            drop: number of groups to remove.
            per_row: remove the same number of groups from every row of groups instead of letting
                all groups of the weight compete.

        Returns:
            bool [out, in], False where a weight is removed.
        """

    def quota(self, out_features: int, in_features: int, sparsity: float) -> int:
        """Number of groups to remove for a sparsity; at least one group is always kept."""
        groups = self.groups(out_features, in_features)
        return min(round(sparsity * groups), groups - 1)
