"""What a pruning criterion is: element scores [out, in] from a weight and what flows into it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.granularity import Granularity

Needs = Literal["nothing", "norms", "hessian"]


@dataclass(frozen=True)
class Inputs:
    """Statistics of the inputs X [in, tokens] of a layer, as far as the criterion needs them.

    norms:    [in], sqrt(sum x^2) per input
    hessian:  [in, in], X X^T + lambda I
    """

    norms: Tensor | None = None
    hessian: Tensor | None = None


class Criterion(ABC):
    """Scores weights; the granularity makes a mask of the scores.

    Scores are energies (squares), so that the sum over a tile is the tile's energy.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = "nothing"
    per_row: ClassVar[bool] = False  # compare within an output row rather than within the layer

    @abstractmethod
    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        """Importance of each weight [out, in], not negative; the lowest leave first."""

    def prune(
        self,
        weight: Tensor,
        inputs: Inputs,
        granularity: Granularity,
        sparsity: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Pruned weight and keep mask [out, in]; a criterion that also repairs overrides this."""
        drop = granularity.quota(weight.shape[0], weight.shape[1], sparsity)
        scores = self.score(weight, inputs, generator)
        if scores.isnan().any():
            raise UsageError(f"criterion {self.name} gives NaN as a score, which cannot be ordered")
        keep = granularity.mask(scores, drop, self.per_row)
        return weight * keep, keep
