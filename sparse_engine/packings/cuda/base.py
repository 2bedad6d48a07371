"""CudaPacking: what the packings of the GPU share, values of any dtype and scales beside int8 ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_engine.packings.base import Packing
from sparse_engine.packings.values import Numbers, check_scales

NO_TRITON = (
    "sparse layers on CUDA need triton, which is not installed: pip install sparse-engine[gpu]"
)
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@dataclass(frozen=True, eq=False, repr=False)
class CudaPacking(Packing):
    """A packing of the Triton kernels (kernels/), on any device until it is multiplied with."""

    backend: ClassVar[str] = "cuda"
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = GPU_DTYPES

    scales: Tensor
    """float32 [out] beside int8 values, else [0]."""

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"scales": source.scales}

    def _validate_scales(self) -> None:
        """Raise InvalidFileError unless there is a scale a row beside int8, and none otherwise."""
        count = self.shape[0] if self.dtype == torch.int8 else 0
        check_scales(self.name, self.scales, count, self.device)
