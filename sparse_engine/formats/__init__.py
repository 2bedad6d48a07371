"""How a sparse weight is stored: one class a format, each a frozen set of plain tensors.

`FORMATS` lists them; `parse_format` reads their names as they are written on the command line.
"""

from __future__ import annotations

import re

from sparse_engine.errors import UsageError
from sparse_engine.formats.base import Format
from sparse_engine.formats.bitmask import Bitmask
from sparse_engine.formats.bsr import BSR, block_fill
from sparse_engine.formats.csr import CSR
from sparse_engine.formats.nm import NM, most_in_group
from sparse_engine.formats.sellp import SellP

FORMATS: tuple[type[Format], ...] = (CSR, BSR, Bitmask, NM, SellP)


def parse_format(text: str) -> tuple[type[Format], dict[str, int]]:
    """Read a format's spec: `"bsr:4x1"` -> `(BSR, {"rows": 4, "cols": 1})`; raises UsageError.

    >>> format_class, params = parse_format("nm:2:4")
    >>> format_class.from_dense(weight, **params).spec
    'nm:2:4'
    """
    for cls in FORMATS:
        pattern = cls.template.format(**dict.fromkeys(cls.param_names, "([0-9]{1,9})"))
        match = re.fullmatch(pattern, text)
        if match:
            numbers = (int(group) for group in match.groups())
            params = dict(zip(cls.param_names, numbers, strict=True))
            problem = cls.params_problem(params)
            if problem:
                raise UsageError(f"format {text!r}: {problem}")
            return cls, params
    known = ", ".join(
        cls.template.format(**{name: name.upper() for name in cls.param_names}) for cls in FORMATS
    )
    raise UsageError(f"unknown format {text!r}: expected one of {known}")


__all__ = [
    "BSR",
    "CSR",
    "FORMATS",
    "NM",
    "Bitmask",
    "Format",
    "SellP",
    "block_fill",
    "most_in_group",
    "parse_format",
]
