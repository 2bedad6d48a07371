"""The CPU backend: the native library's kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

# Importing torch first matters: the extension then binds to torch's OpenMP.
from sparse_engine import _core
from sparse_engine.backends import cpu_ops
from sparse_engine.backends.base import Backend, Row, Window, spec_of
from sparse_engine.backends.cpu_table import FEW_TOKENS, TABLE, has_tiles
from sparse_engine.backends.cpu_timer import time_on_cpu
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format, FormatSpec
from sparse_engine.formats.checks import dtype_name
from sparse_engine.formats.sellp import MAX_INPUTS
from sparse_engine.packings.cpu.runs import Runs
from sparse_engine.packings.cpu.strips import Strips

# Blocks that auto tries; the cost model drops those that would store too many zeros. Lower ones
# need no trial: csr is packed to the same runs, which find rows with the same columns.
BLOCKS = ((32, 1), (16, 1))
# Those that tile registers make faster: they multiply the columns of 16 rows together.
TILED_BLOCKS = ((16, 32), (8, 1), (4, 1))


class CPUBackend(Backend):
    """Kernels for float32 and bfloat16 activations; float weights are multiplied in float32."""

    name: ClassVar[str] = "cpu"
    table: ClassVar[tuple[Row, ...]] = TABLE
    value_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.int8)
    input_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16)
    native_layers: ClassVar[bool] = True
    patterns: ClassVar[tuple[str, ...]] = ("element", "4x1", "16x1")

    def pack(self, weight: Format, dtype: str | None = None, tokens: Sequence[int] = ()) -> Format:
        """See `Backend.pack`; float values keep their dtype whatever float dtype is asked for."""
        self._check_dtype(dtype)
        if self.holds(weight) and (dtype != "int8" or weight.dtype == torch.int8):
            return weight
        wanted = "int8" if dtype == "int8" else dtype_name(weight.dtype)
        few = tokens if weight.shape[1] <= MAX_INPUTS else ()
        return self.packing_for(spec_of(weight), wanted, few).from_format(weight)

    def value_dtype(self, weight: Tensor, dtype: str) -> str:
        """`dtype`; raises UsageError for float16."""
        self._check_dtype(dtype)
        return dtype

    def _check_dtype(self, dtype: str | None) -> None:
        if dtype == "float16":
            raise UsageError("float16 has kernels on GPUs only: use float32 or bfloat16 on the CPU")

    def formats(self, weight: Tensor, dtype: str) -> list[str]:
        """csr, tall blocks, bitmask and sellp; n:m is for weights pruned to such a pattern."""
        tiled = has_tiles() and dtype != "float32"
        # Without tiles, blocks have no kernel of their own in int8.
        sizes = (*BLOCKS, *TILED_BLOCKS) if tiled else () if dtype == "int8" else BLOCKS
        blocks = [f"bsr:{r}x{c}" for r, c in sizes]
        sellp = ["sellp"] if weight.shape[1] <= MAX_INPUTS else []
        return ["csr", *blocks, "bitmask", *sellp]

    def estimate(
        self, spec: str, shape: tuple[int, int], stored: int, tokens: int, dtype: str
    ) -> float:
        """Cycles of one core, roughly, from the instruction counts of the kernels' loops.

        Good to a factor of two, which is enough to drop what cannot win.
        """
        elements = shape[0] * shape[1]
        wide = "avx512" in _core.capabilities()
        vectors = -(-tokens // 16) * (1 if wide else 2)  # of tokens
        passes = -(-tokens // FEW_TOKENS)  # over the weights
        if spec == "sellp":
            return 1.3 * stored * passes * (0.2 if wide else 1.0)
        if spec == "bitmask" and tokens > FEW_TOKENS and has_tiles():
            # 16 cycles for 16 x 16 outputs and 32 columns; six products a float, 64 columns of int8
            products = {"float32": 6.0, "int8": 0.5}.get(dtype, 1.0)
            return elements / 32 * (1 + products * -(-tokens // 16))
        if spec == "bitmask":
            if _core.linear_kernel("bits", dtype, 1).endswith("scalar"):
                return passes * (elements / 8 + 1.5 * stored)
            columns = {"float32": 16, "int8": 64}.get(dtype, 32)
            return passes * 4 * elements / columns
        if spec.startswith("bsr") and tokens > FEW_TOKENS and dtype != "float32" and has_tiles():
            rows = FormatSpec.parse(spec).params["rows"]
            each = 0.06 if dtype == "int8" else 0.1
            return each * stored * vectors * 16 / min(rows, 16)  # columns of 16 rows at a time
        if spec.startswith("bsr") and tokens <= 8:
            return stored * 0.15 * max(1, tokens / 4)
        halves = dtype == "bfloat16" and "fp16" in _core.capabilities()
        return stored * max(1.0, (0.35 if halves else 0.6) * vectors)

    def linear(
        self,
        packed: Format,
        x: Tensor,
        bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
    ) -> Tensor:
        """See `Backend.linear`; sums are float32, and int8 packings may quantise x by token."""
        return cpu_ops.linear(packed, x, bias, activation, residual)

    def kernel_name(self, packed: Format, tokens: int) -> str:
        """E.g. "spmm_runs_f32_avx512"."""
        kind: str = packed.kind  # type: ignore[attr-defined]
        return _core.linear_kernel(kind, dtype_name(packed.dtype), tokens)

    def convolves(self, packed: Format) -> bool:
        """Whether the packing's kernels multiply panels: activations with tokens in the lanes."""
        return isinstance(packed, (Runs, Strips))  # QuadRuns are Runs

    def conv1d(self, packed: Format, x: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        """See `Backend.conv1d`; windows of x are read where they lie, channels first."""
        return cpu_ops.conv1d(packed, x, bias, window)

    def time(
        self,
        calls: Mapping[str, Callable[[], object]],
        device: torch.device,
        inputs: Sequence[Tensor] = (),
        repeats: int = 1,
        between: int | None = None,
    ) -> dict[str, float]:
        """See `Backend.time`; the fastest of a few samples of each call."""
        return time_on_cpu(calls, inputs, repeats, between)

    def device_name(self, device: torch.device) -> str:
        """The processor's brand string."""
        return _core.cpu_name()
