"""The device and the weights of the checks and measurements of bench/gpu.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_engine.formats import Format, FormatSpec
from sparse_engine.packings import Ell, PackedBSR, PackedNM
from sparse_engine.packings.cuda.nm import BITS


@dataclass(frozen=True)
class Setting:
    """Where and how a worker measures."""

    device: torch.device
    rounds: int
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        """Whether there is anything to measure."""
        return self.device.type == "cuda"

    def randn(self, *size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal numbers, drawn in float32."""
        return torch.randn(size, device=self.device).to(dtype)


def random_weight(
    out: int, inputs: int, spec: str, sparsity: float, at: Setting, dtype: torch.dtype
) -> Tensor:
    """A weight [out, in] with exactly this share of zeros in a random pattern of the format."""
    params = FormatSpec.parse(spec).params
    weight = at.randn(out, inputs, dtype=dtype)
    if "of" in params:
        scores = torch.rand(out, -(-inputs // params["of"]), params["of"], device=at.device)
        mask = (scores.argsort(-1).argsort(-1) < params["keep"]).flatten(1)
    else:
        rows, cols = params.get("rows", 1), params.get("cols", 1)
        grid = (-(-out // rows), -(-inputs // cols))
        mask = torch.ones(grid[0] * grid[1], dtype=torch.bool, device=at.device)
        zeros = min(round(sparsity * len(mask)), len(mask) - 1)
        mask[torch.randperm(len(mask), device=at.device)[:zeros]] = False
        mask = mask.view(grid)
        if (rows, cols) != (1, 1):
            mask = mask.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return weight.masked_fill_(~mask[:out, :inputs], 0)


def pack_as(spec: str, weight: Tensor, dtype: torch.dtype, gated: bool = False) -> Format:
    """The packing of the CUDA backend, made without the format that it would be made from."""
    params = FormatSpec.parse(spec).params
    if spec.startswith("bsr"):
        return PackedBSR.from_dense(weight, dtype, gated=gated, **params)
    if spec.startswith("nm"):
        return PackedNM.from_dense(weight, dtype, **params)
    return Ell.from_dense(weight, dtype)


def bare_bytes(packed: Any) -> float:
    """Bytes of values and indices, without padding, pointers, plans and scales."""
    size = packed.values.element_size()
    if isinstance(packed, PackedBSR):
        return packed.values.nbytes + packed.indices.nbytes
    return packed.nnz * (size + (1 if isinstance(packed, Ell) else BITS[packed.of] / 8))


def one_line(error: Exception) -> str:
    """An exception in one line; of a long message the first and the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    return f"{type(error).__name__}: {text[:400]}"
