"""CudaPacking: base of the GPU packings, with values of any dtype and scales beside int8 ones."""

from __future__ import annotations

from abc import abstractmethod
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
# Up to as many tokens, single elements and N:M have kernels of their own, which read the weight
# once for four tokens. For more the weight is expanded and multiplied by torch's dense product.
FEW_TOKENS = 16
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@dataclass(frozen=True, eq=False, repr=False)
class CudaPacking(Packing):
    """A packing of the Triton kernels (kernels/), on any device until it is multiplied with."""

    backend: ClassVar[str] = "cuda"
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = GPU_DTYPES
    max_tokens: ClassVar[int | None] = None
    """Tokens of one launch, where limited; for more tokens the weight is expanded."""

    scales: Tensor
    """float32 [out] beside int8 values, else [0]."""

    @classmethod
    def _scaling(cls, source: Numbers, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"scales": source.scales}

    @abstractmethod
    def launch(self, x: Tensor, **epilogue: Any) -> Tensor:
        """y [tokens, outputs] of x [tokens, in] in the dtype of the values, by the Triton kernel.

        Args:
            x: At most `max_tokens` rows.
            epilogue: `bias`, `activation`, `residual` and `scales`, see `kernels.linear_bsr`.
        """

    @abstractmethod
    def kernel_name(self, tokens: int) -> str:
        """Name of the kernel for `tokens` contiguous rows of x."""

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The dense weight [out, in], for packings with `max_tokens`."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Features of y."""
        return self.shape[0]

    def _expand_scales(self) -> Tensor | None:
        return self.scales if self.dtype == torch.int8 else None

    def _validate_scales(self) -> None:
        """Raise InvalidFileError unless there is a scale a row beside int8, and none otherwise."""
        count = self.shape[0] if self.dtype == torch.int8 else 0
        check_scales(self.name, self.scales, count, self.device)
