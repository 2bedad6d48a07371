"""The axes that every `bench kernel` has, whatever the op, and their limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from sparse_engine.bench.layer import BenchLayer
from sparse_engine.config import DTYPES
from sparse_engine.errors import UsageError
from sparse_engine.formats import NM, FormatSpec


@dataclass(frozen=True, kw_only=True)
class Grid(ABC):
    """What to measure: every combination of the axes, each once.

    Attributes:
        n: Output features, output channels or units.
        m: Tokens of linear layers, else sequences.
        sparsity: Fractions of zeros. N:M has one sparsity of its own.
        format: Specs of formats, or "auto".
        dtype: Dtypes of the stored weight.
        rounds: Samples of each time.
        against: Names of peers; ops other than linear have torch only.
    """

    n: tuple[int, ...]
    m: tuple[int, ...] = (1, 8, 32)
    sparsity: tuple[float, ...] = (0.5, 0.8, 0.9)
    format: tuple[str, ...] = ("csr", "bsr:4x1")
    dtype: tuple[str, ...] = ("float32",)
    rounds: int = 9
    against: tuple[str, ...] = ("torch",)

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be measured."""
        for name in ("n", "k", "m", "layers", "steps", "width"):
            values = getattr(self, name, 1)
            if any(size < 1 for size in (values if isinstance(values, tuple) else (values,))):
                option = f"-{name}" if len(name) == 1 else f"--{name}"
                raise UsageError(f"{option} must be 1 or more, got {values}")
        for name in ("n", "k", "m", "sparsity", "format", "dtype"):
            if getattr(self, name, True) == ():
                raise UsageError(f"{'-' if len(name) == 1 else '--'}{name} needs a value")
        if any(not 0 <= share < 1 for share in self.sparsity):
            raise UsageError(f"sparsity is a fraction of zeros in [0, 1), got {self.sparsity}")
        for spec in self.format:
            if spec != "auto":
                FormatSpec.parse(spec)
        for dtype in self.dtype:
            if dtype not in DTYPES:
                raise UsageError(f"dtype {dtype!r}: use {' or '.join(DTYPES)}")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise UsageError for what this op cannot measure."""

    @abstractmethod
    def points(self) -> Iterator[tuple[BenchLayer, int]]:
        """Each layer with each m, in the order in which they are measured."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of points."""

    def tokens(self) -> tuple[int, ...]:
        """The values of m, each once."""
        return tuple(dict.fromkeys(self.m))

    def check_torch_only(self) -> None:
        """Raise UsageError for other peers than torch."""
        if self.against != ("torch",):
            raise UsageError("--against is for --op linear: other ops are compared with torch")


def sparsity_of(spec: str, sparsity: float) -> float:
    """`sparsity`, or that of N:M, which has one of its own."""
    parsed = None if spec == "auto" else FormatSpec.parse(spec)
    if parsed is None or parsed.format is not NM:
        return sparsity
    return 1 - parsed.params["keep"] / parsed.params["of"]
