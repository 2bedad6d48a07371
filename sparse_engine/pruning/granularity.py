"""Which weights leave together: single elements, tiles, or all but N of M along the inputs.

A granularity turns element scores [out, in] into a keep mask [out, in]; it knows no criterion.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import UsageError


class Granularity(ABC):
    """Groups of weights that are kept or pruned as one."""

    @property
    @abstractmethod
    def span(self) -> int:
        """Input columns that one group covers; column slices must start at its multiples."""

    @property
    @abstractmethod
    def fixed_sparsity(self) -> float | None:
        """The sparsity that the pattern itself dictates, or None if it is free."""

    @abstractmethod
    def groups(self, out_features: int, in_features: int) -> int:
        """Number of groups in a weight [out, in]; partial groups at the edges count as one."""

    @abstractmethod
    def fits(self, out_features: int, in_features: int) -> bool:
        """Whether at least one whole group fits into a weight [out, in]."""

    @abstractmethod
    def mask(self, score: Tensor, drop: int, per_row: bool = False) -> Tensor:
        """Keep mask, bool [out, in], without the `drop` groups of the lowest scores [out, in].

        `per_row` spreads the drops evenly over the rows of groups instead of letting all compete.
        """

    def quota(self, out_features: int, in_features: int, sparsity: float) -> int:
        """Groups to drop for a sparsity; at least one group always stays."""
        groups = self.groups(out_features, in_features)
        return min(round(sparsity * groups), groups - 1)


class Tiles(Granularity):
    """Groups that are tiles of `rows` outputs x `cols` inputs."""

    rows: int
    cols: int

    @property
    def span(self) -> int:
        return self.cols

    @property
    def fixed_sparsity(self) -> float | None:
        return None

    def groups(self, out_features: int, in_features: int) -> int:
        return _ceil_div(out_features, self.rows) * _ceil_div(in_features, self.cols)

    def fits(self, out_features: int, in_features: int) -> bool:
        return out_features >= self.rows and in_features >= self.cols

    def group_scores(self, score: Tensor) -> Tensor:
        """Mean score of each tile's real elements, [ceil(out / rows), ceil(in / cols)]."""
        if self.rows == self.cols == 1:
            return score
        out_features, in_features = score.shape
        down, across = -out_features % self.rows, -in_features % self.cols
        padded = F.pad(score, (0, across, 0, down))
        sums = padded.view(-1, self.rows, padded.shape[1] // self.cols, self.cols).sum((1, 3))
        heights = torch.full((sums.shape[0], 1), self.rows, device=score.device)
        widths = torch.full((1, sums.shape[1]), self.cols, device=score.device)
        heights[-1] -= down
        widths[0, -1] -= across
        return sums / (heights * widths)

    def mask(self, score: Tensor, drop: int, per_row: bool = False) -> Tensor:
        groups = self.group_scores(score)
        kept = _keep_per_row(groups, drop) if per_row else _keep_anywhere(groups, drop)
        if self.rows > 1:
            kept = kept.repeat_interleave(self.rows, 0)
        if self.cols > 1:
            kept = kept.repeat_interleave(self.cols, 1)
        return kept[: score.shape[0], : score.shape[1]]


@dataclass(frozen=True)
class Element(Tiles):
    """Every weight on its own; text form "element"."""

    rows = 1
    cols = 1

    def __str__(self) -> str:
        return "element"


@dataclass(frozen=True)
class Block(Tiles):
    """Tiles of `rows` outputs x `cols` inputs; text form "4x1".

    A layer whose shape is no multiple of the tile is padded inside: the partial tiles at its edges
    are scored by the mean of their real elements.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise UsageError(f"block {self.rows}x{self.cols}: rows and cols must be at least 1")

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True)
class NM(Granularity):
    """Keep `keep` of every `of` consecutive inputs of a row; text form "2:4" is keep:of.

    Its sparsity is 1 - keep / of. A shorter last group keeps up to `keep` weights.

        se.prune(model, granularity=se.NM(keep=2, of=4))
        packed = se.NM.from_dense(weight, keep=2, of=4)
    """

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep < self.of:
            raise UsageError(
                f"keep {self.keep} of {self.of}: keep must be at least 1 and less than {self.of}"
            )

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    @property
    def span(self) -> int:
        return self.of

    @property
    def fixed_sparsity(self) -> float:
        return 1 - self.keep / self.of

    def groups(self, out_features: int, in_features: int) -> int:
        return out_features * _ceil_div(in_features, self.of)

    def fits(self, out_features: int, in_features: int) -> bool:
        return in_features >= self.of

    def mask(self, score: Tensor, drop: int = 0, per_row: bool = False) -> Tensor:
        """Keep mask with the `keep` best of every `of`; the pattern fixes how many, not `drop`."""
        out_features, in_features = score.shape
        padded = F.pad(score, (0, -in_features % self.of), value=-torch.inf)
        grouped = padded.view(out_features, -1, self.of)
        best = grouped.topk(self.keep, dim=2).indices
        kept = torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, best, True)
        return kept.view(out_features, -1)[:, :in_features]

    @classmethod
    def from_dense(cls, weight: Tensor, keep: int = 2, of: int = 4) -> Any:
        """Pack a weight [out, in] that has this pattern: `sparse_engine.formats.NM.from_dense`."""
        from sparse_engine import formats

        return formats.NM.from_dense(weight, keep=keep, of=of)


def parse_granularity(text: str | Granularity) -> Granularity:
    """Granularity for "element", "4x1" (rows x cols) or "2:4" (keep:of); `str()` gives it back.

    Raises UsageError for any other text.
    """
    if isinstance(text, Granularity):
        return text
    if text == "element":
        return Element()
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        return Block(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(int(match[1]), int(match[2]))
    raise UsageError(
        f"granularity {text!r} is not known; give element, ROWSxCOLS such as 4x1, "
        "or KEEP:OF such as 2:4"
    )


def _keep_anywhere(groups: Tensor, drop: int) -> Tensor:
    kept = torch.ones(groups.numel(), dtype=torch.bool, device=groups.device)
    kept[groups.flatten().topk(drop, largest=False, sorted=False).indices] = False
    return kept.view_as(groups)


def _keep_per_row(groups: Tensor, drop: int) -> Tensor:
    """Every row loses as many groups, but never keeps one of score 0 while others lose more.

    Rows with more zeros than their share lose just these, and the others so many fewer; the rest of
    the division leave the rows where the next loss is least.
    """
    zeros = (groups == 0).sum(1)
    if int(zeros.sum()) >= drop:
        return _keep_anywhere(groups, drop)
    low, high = 0, groups.shape[1]  # the largest even loss with which no more than `drop` leave
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(zeros.clamp(min=middle).sum()) <= drop
        low, high = (middle, high) if fits else (low, middle - 1)
    losses = zeros.clamp(min=low)
    ordered = groups.sort(dim=1, stable=True)
    if extra := drop - int(losses.sum()):
        following = ordered.values.gather(1, losses.clamp(max=groups.shape[1] - 1)[:, None])[:, 0]
        # Rows that lose zeros alone have lost more than their share.
        following = following.masked_fill(zeros > low, torch.inf)
        losses[following.topk(extra, largest=False).indices] += 1
    leaves = torch.arange(groups.shape[1], device=groups.device) < losses[:, None]
    return torch.empty_like(leaves).scatter_(1, ordered.indices, ~leaves)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
