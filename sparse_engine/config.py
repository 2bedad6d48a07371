"""SparseConfig: how weights are stored."""

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

    Attributes:
        format: "csr", "bsr:RxC", "bitmask", "nm:K:M", "sellp", "dense", or "auto" for the one that
            is measured as the fastest on this machine.
        dtype: of the stored values; activations keep their own. On the CPU "float32" and "bfloat16"
            weights are multiplied in float32. For "int8" (symmetric, one scale an output)
            activations are quantised token by token during the operation. "float16" is for GPUs.
            There activations are multiplied in the dtype of floating-point weights, or in their own
            for "int8", and "float32" keeps weights of 16 bits as they are.
        tokens: numbers of rows of x that "auto" times: batch x sequence length as the model will
            run.
        model_bytes: of the weights of the model, which pass through the caches between two calls of
            a layer, where "auto" times it. None for those of the model in `sparsify_`, and for more
            than the caches hold elsewhere.
        spec: `format`, parsed; None for "auto" and "dense".

    Raises:
        UsageError: A value is out of range.
    """

    format: str = "auto"
    dtype: str = "float32"
    tokens: tuple[int, ...] = (1, 128)
    model_bytes: int | None = None
    spec: FormatSpec | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = self.format not in ("auto", "dense")
        object.__setattr__(self, "spec", FormatSpec.parse(self.format) if named else None)
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r}: use {' or '.join(DTYPES)}")
        if self.model_bytes is not None and self.model_bytes < 0:
            raise UsageError(f"model_bytes {self.model_bytes}: give a number of bytes from 0 up")
        if not self.tokens or any(type(t) is not int or t < 1 for t in self.tokens):
            raise UsageError(f"tokens {self.tokens!r}: give whole numbers from 1 up, as (1, 128)")

    @property
    def source_dtype(self) -> torch.dtype:
        """The dtype of a weight when it is packed: bfloat16 or float32, which formats can store."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @classmethod
    def of(cls, config: Self | str | None) -> Self:
        """`config` itself, one with the format of that name, or the default for None."""
        if isinstance(config, str):
            return cls(format=config)
        return cls() if config is None else config
