"""N:M: a fixed number of weights in every group of consecutive inputs.

Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
arXiv:2102.04010; 2:4 is the pattern that Nvidia's sparse tensor cores multiply, arXiv:2104.08378.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import formats
from sparse_engine.errors import UsageError
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.granularity.tiles import ceil_div


@dataclass(frozen=True)
class NM(Granularity):
    """The N:M pattern: keep `keep` of every `of` consecutive inputs of a row.

    The text form is "2:4", which is keep:of. The pattern fixes the sparsity, 1 - keep / of. A
    shorter last group keeps up to `keep` weights.

    A matrix that is stored in this pattern, `sparse_engine.formats.NM`, counts as an instance: it
    has the same `keep` and `of`, and `prune` accepts it as a granularity.

    Example:
        se.prune(model, granularity=se.NM(keep=2, of=4))
        packed = se.NM.from_dense(weight, keep=2, of=4)
        isinstance(packed, se.NM)  # True

    Raises:
        UsageError: unless 1 <= keep < of.
    """

    text_form: ClassVar[str] = "KEEP:OF such as 2:4"
    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep < self.of:
            raise UsageError(
                f"keep {self.keep} of {self.of}: keep must be at least 1 and less than {self.of}"
            )

    @classmethod
    def parse(cls, text: str) -> Self | None:
        match = re.fullmatch(r"(\d+):(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    @classmethod
    def from_dense(cls, weight: Tensor, keep: int = 2, of: int = 4) -> formats.NM:
        """Store a weight [out, in] that has this pattern: `sparse_engine.formats.NM.from_dense`.

        Raises:
            UsageError: if a group has more than `keep` non-zeros.
        """
        return formats.NM.from_dense(weight, keep=keep, of=of)

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    @property
    def fixed_sparsity(self) -> float:
        return 1 - self.keep / self.of

    def span(self, in_features: int) -> int:
        return self.of

    def groups(self, out_features: int, in_features: int) -> int:
        return out_features * ceil_div(in_features, self.of)

    def fits(self, out_features: int, in_features: int) -> bool:
        return in_features >= self.of

    def mask(self, score: Tensor, drop: int = 0, per_row: bool = False) -> Tensor:
        """Keep mask with the `keep` best of every `of`; `drop` and `per_row` have no effect."""
        out_features, in_features = score.shape
        padded = F.pad(score, (0, -in_features % self.of), value=-torch.inf)
        grouped = padded.view(out_features, -1, self.of)
        best = grouped.topk(self.keep, dim=2).indices
        kept = torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, best, True)
        return kept.view(out_features, -1)[:, :in_features]


NM.register(formats.NM)
