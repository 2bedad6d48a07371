"""SparseConfig: what to store weights as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch

from sparse_engine.errors import UsageError
from sparse_engine.formats import FormatSpec

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class SparseConfig:
    """How `sparsify_` and `from_dense` store a weight.

    format: "auto" (measured on this machine), "csr", "bsr:RxC", "bitmask", "nm:K:M", "sellp" or
        "dense".
    dtype: of the stored values. Activations keep their own. On the CPU "float32" and "bfloat16" weights
        meet them in float32; for "int8" (symmetric, one scale an output) they are quantised token by
        token while the op runs. "float16" is for GPUs, where activations meet float weights in the
        weights' dtype, and int8 ones in their own; there "float32" leaves weights of 16 bits what they are.
    tokens: numbers of rows that "auto" times, i.e. batch x sequence length as the model will run.
    """

    format: str = "auto"
    dtype: str = "float32"
    tokens: tuple[int, ...] = (1, 128)
    spec: FormatSpec | None = field(init=False, repr=False, compare=False)
    """`format`, parsed; None for "auto" and "dense"."""

    def __post_init__(self) -> None:
        named = self.format not in ("auto", "dense")
        object.__setattr__(self, "spec", FormatSpec.parse(self.format) if named else None)
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r}: use {' or '.join(DTYPES)}")
        if not self.tokens or any(type(t) is not int or t < 1 for t in self.tokens):
            raise UsageError(f"tokens {self.tokens!r}: give whole numbers from 1 up, as (1, 128)")

    @property
    def source_dtype(self) -> torch.dtype:
        """What a weight is cast to before it is packed: `dtype`, or float32 if no format holds that."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @classmethod
    def of(cls, config: Self | str | None) -> Self:
        """A config from a config, from a format's name, or the default."""
        if isinstance(config, str):
            return cls(format=config)
        return cls() if config is None else config
