"""FormatSpec: a format and its parameters, parsed once from a text such as "bsr:4x1"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.formats.base import Format
from sparse_engine.formats.bitmask import Bitmask
from sparse_engine.formats.bsr import BSR
from sparse_engine.formats.csr import CSR
from sparse_engine.formats.nm import NM
from sparse_engine.formats.sellp import SellP

FORMATS: tuple[type[Format], ...] = (CSR, BSR, Bitmask, NM, SellP)


@dataclass(frozen=True)
class FormatSpec:
    """A format and the numbers in its name; hashable, and equal where both are equal.

    Attributes:
        format: The class, one of `FORMATS`.
        numbers: The parameters in the order of `format.param_names`.

    >>> spec = FormatSpec.parse("nm:2:4")
    >>> spec.format, spec.params, str(spec)
    (NM, {"keep": 2, "of": 4}, "nm:2:4")
    """

    format: type[Format]
    numbers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "csr", "bsr:ROWSxCOLS", "bitmask", "nm:KEEP:OF" or "sellp".

        Raises:
            UsageError: The text names no format, or its numbers are out of range.
        """
        for kind in FORMATS:
            pattern = kind.template.format(**dict.fromkeys(kind.param_names, "([0-9]{1,9})"))
            match = re.fullmatch(pattern, text)
            if match:
                spec = cls(kind, tuple(int(group) for group in match.groups()))
                problem = kind.params_problem(spec.params)
                if problem:
                    raise UsageError(f"format {text!r}: {problem}")
                return spec
        known = ", ".join(
            kind.template.format(**{name: name.upper() for name in kind.param_names})
            for kind in FORMATS
        )
        raise UsageError(f"unknown format {text!r}: expected one of {known}")

    @classmethod
    def of(cls, spec: Self | str) -> Self:
        """`spec` itself, or parsed if it is a text."""
        return cls.parse(spec) if isinstance(spec, str) else spec

    @property
    def params(self) -> dict[str, int]:
        """The parameters by name, e.g. `{"rows": 4, "cols": 1}`."""
        return dict(zip(self.format.param_names, self.numbers, strict=True))

    def from_dense(self, weight: Tensor) -> Format:
        """Store a dense weight [out, in]; raises UsageError if the format cannot hold it."""
        return self.format.from_dense(weight, **self.params)

    def convert(self, weight: Format) -> Format:
        """A weight in this format, made without a dense matrix; raises UsageError as above."""
        return weight.to_format(self.format, **self.params)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return self.format.template.format(**self.params)
