"""The CUDA backend: Triton kernels, which are imported by the first call that needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparse_engine.backends.base import Backend, Row, spec_of
from sparse_engine.backends.cuda_table import TABLE
from sparse_engine.backends.cuda_timer import time_on_gpu
from sparse_engine.backends.semi_structured import compress
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format, block_fill, most_in_group
from sparse_engine.formats.checks import dtype_name
from sparse_engine.packings.cuda.base import GPU_DTYPES
from sparse_engine.packings.cuda.bsr import PackedBSR

# Blocks that auto tries: tall ones, since what many tokens cost is set by the rows that share a
# tile of x.
BLOCKS = (
    *((128, cols) for cols in (128, 64, 32, 16)),
    *((64, cols) for cols in (64, 32, 16)),
    *((32, 32), (16, 16), (128, 1), (64, 1)),
)
GROUPS = ((1, 4), (2, 4), (2, 8), (4, 8), (4, 16))
# Widths of the blocks that auto looks for in recurrent networks.
STEP_COLS = (64, 32, 16, 1)
# A pattern counts as made of blocks when at least this share of their elements is non-zero.
MIN_FILL = 0.95
NARROW = (torch.bfloat16, torch.float16)


class CUDABackend(Backend):
    """Kernels for float32, float16 and bfloat16 activations, cast to the dtype of float weights.

    Blocks and N:M that a kernel has stay what they are; everything else becomes single elements.
    """

    name: ClassVar[str] = "cuda"
    table: ClassVar[tuple[Row, ...]] = TABLE
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = GPU_DTYPES
    input_dtypes: ClassVar[tuple[torch.dtype, ...]] = (
        torch.float32, torch.bfloat16, torch.float16,
    )  # fmt: skip
    fuses_projections: ClassVar[bool] = True
    patterns: ClassVar[tuple[str, ...]] = ("element", "2:4", "32x32", "128x16")

    def pack(self, weight: Format, dtype: str | None = None, tokens: Sequence[int] = ()) -> Format:
        """See `Backend.pack`; the packing stays on the weight's device."""
        if self.holds(weight):
            return weight
        dtype = dtype or dtype_name(weight.dtype)
        values: torch.dtype = getattr(torch, dtype)
        return self.packing_for(spec_of(weight), dtype).from_format(weight, values)

    def value_dtype(self, weight: Tensor, dtype: str) -> str:
        """`dtype`; "float32" leaves weights of 16 bits what they are."""
        narrow = dtype == "float32" and weight.dtype in NARROW
        return dtype_name(weight.dtype) if narrow else dtype

    def formats(self, weight: Tensor, dtype: str) -> list[str]:
        """The two largest blocks and the smallest groups that the pattern is made of, and csr."""
        blocks = (f"bsr:{r}x{c}" for r, c in BLOCKS if block_fill(weight, r, c) >= MIN_FILL)
        groups = (f"nm:{n}:{m}" for n, m in GROUPS if most_in_group(weight, m) <= n)
        return [*islice(blocks, 2), *islice(groups, 1), "csr"]

    def linear(
        self,
        packed: Format,
        x: Tensor,
        bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
    ) -> Tensor:
        """See `Backend.linear`; sums are float32, and int8 weights meet x in its own dtype."""
        from sparse_engine.backends import cuda_ops

        return cuda_ops.linear(packed, x, bias, activation, residual)

    def kernel_name(self, packed: Format, tokens: int) -> str:
        """E.g. "linear_bsr_kernel"."""
        return packed.kernel_name(tokens)  # type: ignore[attr-defined]

    def fuse(
        self, packed: Sequence[Format], gated: bool = False
    ) -> tuple[Format, list[Format]] | None:
        """See `Backend.fuse`: BSR weights of one block size, dtype and width, of whole blocks."""
        blocks = [weight for weight in packed if isinstance(weight, PackedBSR)]
        if len(blocks) < len(packed) or any(b.shape[0] % b.rows for b in blocks):
            return None
        if len({(b.values.shape[1:], b.dtype, b.device, b.shape[1]) for b in blocks}) > 1:
            return None
        if gated and blocks[0].shape != blocks[1].shape:
            return None
        whole = PackedBSR.join(blocks, gated)
        return whole, list(whole.split(blocks))

    def recurrent_format(self, weight: Tensor, gate_rows: int) -> str | None:
        """Blocks of `gate_rows` rows, the widest that fit, for which a step is one kernel;
        or csr.
        """
        fits = (c for c in STEP_COLS if block_fill(weight, gate_rows, c) >= MIN_FILL)
        return next((f"bsr:{gate_rows}x{cols}" for cols in fits), "csr")

    def has_step_kernel(self, packed: Format, gate_rows: int) -> bool:
        """See `kernels.recurrent_step`, which reads float blocks of a gate's rows."""
        fits = isinstance(packed, PackedBSR) and packed.rows == gate_rows
        return fits and packed.dtype != torch.int8

    def compress_linear(
        self, linear: nn.Linear, tokens: tuple[int, ...]
    ) -> tuple[Tensor | None, str]:
        """A 2:4 weight of 16 bits for torch's own semi-structured kernels."""
        return compress(linear, tokens, self.time)

    def time(
        self,
        calls: Mapping[str, Callable[[], object]],
        device: torch.device,
        inputs: Sequence[Tensor] = (),
        repeats: int = 1,
        between: int | None = None,
    ) -> dict[str, float]:
        """See `Backend.time`; the median of CUDA graphs, whose clock needs no repeats."""
        return time_on_gpu(calls, device)

    def device_name(self, device: torch.device) -> str:
        """E.g. "NVIDIA H200"."""
        return torch.cuda.get_device_name(device)

    def check_available(self, device: torch.device) -> None:
        """Raise UsageError where torch sees no GPU."""
        if not torch.cuda.is_available():
            raise UsageError(f"device {str(device)!r}: torch sees no such GPU here")
