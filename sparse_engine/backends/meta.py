"""The meta backend: tensors without values, on which weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sparse_engine.backends.base import Backend
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format


class MetaBackend(Backend):
    """No kernels. Operators on meta tensors belong to the backend of the packing."""

    name: ClassVar[str] = "meta"
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.int8)
    input_dtypes: ClassVar[tuple[torch.dtype, ...]] = (
        torch.float32, torch.bfloat16, torch.float16,
    )  # fmt: skip

    def holds(self, weight: Format) -> bool:
        """Always: without kernels every weight is as good."""
        return True

    def pack(self, weight: Format, dtype: str | None = None, tokens: Sequence[int] = ()) -> Format:
        """The weight itself."""
        return weight

    def value_dtype(self, weight: Tensor, dtype: str) -> str:
        """`dtype`."""
        return dtype

    def formats(self, weight: Tensor, dtype: str) -> list[str]:
        """None."""
        return []

    def linear(
        self,
        packed: Format,
        x: Tensor,
        bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
    ) -> Tensor:
        """Raises UsageError."""
        raise UsageError(f"{packed.spec} is packed for no kernel: move the layer to cpu or cuda")

    def kernel_name(self, packed: Format, tokens: int) -> str:
        """ "none"."""
        return "none"

    def time(
        self,
        calls: Mapping[str, Callable[[], object]],
        device: torch.device,
        inputs: Sequence[Tensor] = (),
        repeats: int = 1,
        between: int | None = None,
    ) -> dict[str, float]:
        """Raises UsageError."""
        raise UsageError("nothing runs on the meta device: move the model to cpu or cuda")

    def device_name(self, device: torch.device) -> str:
        """ "meta"."""
        return "meta"
