"""What `bench kernel` measures: the combinations of its options, each once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from torch import Tensor

from sparse_engine.bench.matrices import OwnMatrix, check_size
from sparse_engine.bench.patterns import Pattern, random_weight
from sparse_engine.bench.peers import find_peers
from sparse_engine.config import DTYPES
from sparse_engine.errors import UsageError
from sparse_engine.formats import NM, FormatSpec

BY_FORMAT = Pattern()


@dataclass(frozen=True)
class Case:
    """A layer to measure with every number of tokens."""

    dtype: str
    n: int
    k: int
    format: str
    sparsity: float
    source: str
    own: OwnMatrix | None = None

    def weight(self, pattern: Pattern) -> Tensor:
        """The user's own weight, or a random one with `pattern`."""
        if self.own is not None:
            return self.own.weight
        return random_weight(self.n, self.k, self.sparsity, self.format, pattern)


@dataclass(frozen=True)
class KernelGrid:
    """What to measure: every combination, each once. n outputs, k inputs, m tokens.

    format: specs of formats, or "auto": for each number of tokens the sparse format that
        `choose_format` measures as the fastest. N:M has one sparsity of its own.
    own: weights to measure instead of random ones of n x k and `sparsity`.
    """

    n: tuple[int, ...] = (3072,)
    k: tuple[int, ...] = (768,)
    m: tuple[int, ...] = (1, 16, 128)
    sparsity: tuple[float, ...] = (0.5, 0.8, 0.9)
    format: tuple[str, ...] = ("csr", "bsr:4x1")
    dtype: tuple[str, ...] = ("float32",)
    rounds: int = 9
    against: tuple[str, ...] = ("torch",)
    pattern: Pattern = BY_FORMAT
    own: tuple[OwnMatrix, ...] = ()

    def __post_init__(self) -> None:
        for name in ("n", "k", "m"):
            if any(size < 1 for size in getattr(self, name)):
                raise UsageError(f"-{name} must be 1 or more, got {getattr(self, name)}")
        if any(not 0 <= s < 1 for s in self.sparsity):
            raise UsageError(f"sparsity is a fraction of zeros in [0, 1), got {self.sparsity}")
        if not all((self.n, self.k, self.m, self.sparsity, self.format, self.dtype)):
            raise UsageError("each of -n, -k, -m, --sparsity, --format, --dtype needs a value")
        for spec in self.format:
            if (
                spec != "auto"
                and FormatSpec.parse(spec).format is NM
                and self.pattern.kind != "format"
            ):
                raise UsageError(f"{spec} holds its own pattern only: leave --pattern out")
        for dtype in self.dtype:
            if dtype not in DTYPES:
                raise UsageError(f"dtype {dtype!r}: use {' or '.join(DTYPES)}")
            if not any(p.dense and not p.problem(dtype) for p in find_peers(self.against)):
                asked = ", ".join(self.against) or "nobody"
                raise UsageError(f"no dense {dtype} among {asked}: ask for torch as well")
        for n, k in {(case.n, case.k) for case in self.cases()}:
            check_size(n, k, "a weight")
            for m in self.m:
                check_size(m, max(n, k), "activations")

    def cases(self) -> list[Case]:
        """The layers, each once, "auto" last: it may have chosen what was measured before it."""
        specs = sorted(dict.fromkeys(self.format), key=lambda spec: spec == "auto")
        if self.own:
            made = product(dict.fromkeys(self.dtype), self.own, specs)
            return [
                Case(
                    dtype,
                    own.weight.shape[0],
                    own.weight.shape[1],
                    spec,
                    _zeros(own.weight),
                    own.source,
                    own,
                )
                for dtype, own, spec in made
            ]
        source = "random" if self.pattern.kind == "format" else f"random {self.pattern}"
        axes = product(self.dtype, self.n, self.k, specs, self.sparsity)
        found = (
            Case(dtype, n, k, spec, sparsity_of(spec, sparsity), source)
            for dtype, n, k, spec, sparsity in axes
        )
        return list(dict.fromkeys(found))

    def tokens(self) -> tuple[int, ...]:
        """Numbers of tokens, each once."""
        return tuple(dict.fromkeys(self.m))

    def __len__(self) -> int:
        return len(self.cases()) * len(self.tokens())


def _zeros(weight: Tensor) -> float:
    return 1 - int(weight.count_nonzero()) / weight.numel()


def sparsity_of(spec: str, asked: float) -> float:
    """N:M has its own, whatever is asked for."""
    parsed = None if spec == "auto" else FormatSpec.parse(spec)
    if parsed is None or parsed.format is not NM:
        return asked
    return 1 - parsed.params["keep"] / parsed.params["of"]
