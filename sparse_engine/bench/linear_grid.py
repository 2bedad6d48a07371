"""What `bench kernel --op linear` measures: random weights, or the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from sparse_engine.auto.format import choose_format
from sparse_engine.bench.grid import Grid, sparsity_of
from sparse_engine.bench.linear import LinearLayer
from sparse_engine.bench.matrices import OwnMatrix, check_size
from sparse_engine.bench.patterns import Pattern, activation_dtype, random_weight
from sparse_engine.bench.peers import find_peers
from sparse_engine.config import SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.formats import NM, FormatSpec

BY_FORMAT = Pattern()


@dataclass(frozen=True)
class Case:
    """A weight and how it is stored; measured with every number of tokens."""

    dtype: str
    n: int
    k: int
    format: str
    sparsity: float
    source: str
    own: OwnMatrix | None = None

    def weight(self, pattern: Pattern) -> Tensor:
        """The user's own weight, or a random one with `pattern`; [n, k], float32."""
        if self.own is not None:
            return self.own.weight
        return random_weight(self.n, self.k, self.sparsity, self.format, pattern)


@dataclass(frozen=True, kw_only=True)
class LinearGrid(Grid):
    """Linear layers of n outputs and k inputs on m tokens.

    Attributes:
        k: Input features.
        against: Names of peers, one of them dense.
        pattern: Where random weights have their zeros.
        own: Weights to measure instead of random ones of n x k and `sparsity`.

    "auto" is, for each number of tokens, the sparse format that `choose_format` measures as the
    fastest.
    """

    n: tuple[int, ...] = (3072,)
    k: tuple[int, ...] = (768,)
    m: tuple[int, ...] = (1, 16, 128)
    pattern: Pattern = BY_FORMAT
    own: tuple[OwnMatrix, ...] = ()

    def check(self) -> None:
        """Raise UsageError for no dense peer, a pattern that N:M cannot have, large sizes."""
        for spec in self.format:
            if spec == "auto" or self.pattern.kind == "format":
                continue
            if FormatSpec.parse(spec).format is NM:
                raise UsageError(f"{spec} holds its own pattern only: leave --pattern out")
        for dtype in self.dtype:
            if not any(p.dense and not p.problem(dtype) for p in find_peers(self.against)):
                named = ", ".join(self.against) or "none"
                raise UsageError(f"no dense {dtype} among --against {named}: add torch")
        for n, k in {(case.n, case.k) for case in self.cases()}:
            check_size(n, k, "a weight")
            for m in self.m:
                check_size(m, max(n, k), "activations")

    def cases(self) -> list[Case]:
        """The weights, each once; "auto" last, as it may choose what was measured before it."""
        specs = sorted(dict.fromkeys(self.format), key=lambda spec: spec == "auto")
        if self.own:
            return [
                Case(
                    dtype,
                    own.weight.shape[0],
                    own.weight.shape[1],
                    spec,
                    _sparsity(own.weight),
                    own.source,
                    own,
                )
                for dtype, own, spec in product(dict.fromkeys(self.dtype), self.own, specs)
            ]
        source = "random" if self.pattern.kind == "format" else f"random {self.pattern}"
        axes = product(self.dtype, self.n, self.k, specs, self.sparsity)
        found = (
            Case(dtype, n, k, spec, sparsity_of(spec, sparsity), source)
            for dtype, n, k, spec, sparsity in axes
        )
        return list(dict.fromkeys(found))

    def points(self) -> Iterator[tuple[LinearLayer, int]]:
        """Each layer with each number of tokens."""
        for case in self.cases():
            weight, auto = case.weight(self.pattern), case.format == "auto"
            layer: LinearLayer | None = None
            for m in self.tokens():
                spec = fastest_format(weight, case.dtype, m) if auto else case.format
                if layer is None or layer.spec != spec:
                    layer = LinearLayer(weight, spec, case.dtype, case.source, auto)
                yield layer, m

    def __len__(self) -> int:
        return len(self.cases()) * len(self.tokens())


def fastest_format(weight: Tensor, dtype: str, m: int) -> str:
    """The sparse format that "auto" chooses for m tokens."""
    config = SparseConfig(dtype=dtype, tokens=(m,))
    return choose_format(weight.to(activation_dtype(dtype)), config, dense=False).format


def _sparsity(weight: Tensor) -> float:
    return 1 - int(weight.count_nonzero()) / weight.numel()
