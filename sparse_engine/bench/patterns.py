"""Random weights to measure, and the pattern of their zeros."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.config import DTYPES
from sparse_engine.errors import UsageError
from sparse_engine.formats import BSR, NM, FormatSpec

# Default share of non-zeros inside a cluster.
FILL = 0.5


@dataclass(frozen=True)
class Pattern:
    """The pattern of the non-zeros.

    Attributes:
        kind: "format": whole blocks or groups where the format has them, else single elements.
            "element": single elements for every format. "clusters": elements inside a few blocks
            of `rows` x `cols`.
        rows: Rows of a cluster.
        cols: Columns of a cluster.
        fill: Share of non-zeros inside a cluster; more where there are too few zeros for that.
    """

    kind: str = "format"
    rows: int = 1
    cols: int = 1
    fill: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From "format", "element", "RxC" or "RxC:FILL"; raises UsageError.

        >>> Pattern.parse("16x16:0.5")
        Pattern(kind='clusters', rows=16, cols=16, fill=0.5)
        """
        if text in ("format", "element"):
            return cls(text)
        found = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})(?::([0-9.]{1,9}))?", text)
        try:
            fill = float(found[3]) if found and found[3] else FILL
        except ValueError:
            fill = 0.0
        if not found or not int(found[1]) or not int(found[2]) or not 0 < fill <= 1:
            raise UsageError(
                f"--pattern {text!r}: use format, element, ROWSxCOLS or ROWSxCOLS:FILL, "
                "as 16x16:0.5 (half of the elements of some 16x16 blocks)"
            )
        return cls("clusters", int(found[1]), int(found[2]), fill)

    def __str__(self) -> str:
        return self.kind if self.kind != "clusters" else f"{self.rows}x{self.cols}:{self.fill:g}"


def activation_dtype(dtype: str) -> torch.dtype:
    """Dtype of the activations, and of the weight before it is packed; int8: float32."""
    return torch.float32 if dtype == "int8" else DTYPES[dtype]


def random_weight(
    n: int, k: int, sparsity: float, spec: str, pattern: Pattern | None = None
) -> Tensor:
    """A weight [n, k], float32, with `sparsity` zeros in the `pattern` of the format `spec`."""
    generator = torch.Generator().manual_seed(0)
    pattern = pattern or Pattern()
    weight = torch.randn(n, k, generator=generator)
    if pattern.kind == "clusters":
        return weight * _clusters(n, k, sparsity, pattern, generator)
    if spec == "auto":
        spec = "csr"
    parsed = FormatSpec.parse(spec)
    format_class, params = parsed.format, parsed.params
    whole = pattern.kind == "format"
    rows, cols = (params["rows"], params["cols"]) if whole and format_class is BSR else (1, 1)
    score = torch.rand(-(-n // rows), -(-k // cols), generator=generator)
    if whole and format_class is NM:
        groups = F.pad(score, (0, -k % params["of"]), value=-1.0).view(n, -1, params["of"])
        keep = torch.zeros_like(groups, dtype=torch.bool)
        keep.scatter_(2, groups.topk(params["keep"], dim=2).indices, True)
        return weight * keep.view(n, -1)[:, :k]
    keep = _highest(score, score.numel() - round(sparsity * score.numel()))
    return weight * keep.repeat_interleave(rows, 0).repeat_interleave(cols, 1)[:n, :k]


def _clusters(
    n: int, k: int, sparsity: float, pattern: Pattern, generator: torch.Generator
) -> Tensor:
    density = 1 - sparsity
    tall, wide = ceil(n / pattern.rows), ceil(k / pattern.cols)
    blocks = torch.rand(tall, wide, generator=generator)
    used = ceil(density / max(pattern.fill, density) * blocks.numel())
    inside = _highest(blocks, used).repeat_interleave(pattern.rows, 0)
    inside = inside.repeat_interleave(pattern.cols, 1)[:n, :k]
    score = torch.rand(n, k, generator=generator).masked_fill_(~inside, -1.0)
    # Blocks at the edge may be cut, so that fewer elements than requested are left.
    return _highest(score, min(round(density * n * k), int(inside.sum())))


def _highest(score: Tensor, count: int) -> Tensor:
    """Which elements are among the `count` highest."""
    below = score.numel() - count
    return score > (score.flatten().kthvalue(below).values if below else -2.0)
