"""Generator: soft masks of structures, trained so that a discriminator takes the model for dense.

No labels are needed. How the masks are trained is in pruning/adversarial/masks.py; the score of a
group is the mean of its mask over the training.

Lin et al. 2019, "Towards Optimal Structured CNN Pruning via Generative Adversarial Learning",
arXiv:1903.09291.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.criteria.base import Criterion
from sparse_engine.pruning.criteria.groups import Groups
from sparse_engine.pruning.criteria.inputs import Inputs

MOST_STEPS = 100_000


@dataclass(frozen=True)
class GeneratorMask(Criterion):
    """Removes the structures whose masks vanish first.

    Args:
        steps: of training; each reads one calibration batch.
        rate: step size of the masks.
        adversarial: weight of the discriminator; 0 for the distance of the outputs alone.
    """

    name = "generator"
    needs = ("mask",)
    needs_structures = True
    steps: int = 300
    rate: float = 0.05
    adversarial: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise UsageError(f"generator: steps={self.steps} must lie between 1 and {MOST_STEPS}")
        if not 0 < self.rate < 1:
            raise UsageError(f"generator: rate={self.rate} must lie between 0 and 1")
        if not 0 <= self.adversarial < float("inf"):
            raise UsageError(f"generator: adversarial={self.adversarial} must be at least 0")

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        raise UsageError(f"criterion {self.name} scores structures, not single weights")

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        assert groups.mask is not None
        return groups.mask
