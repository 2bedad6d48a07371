"""bench kernel --op conv1d: a convolution over time against dense torch.

Both run the same random weight [n, k, width], padded so that the number of steps stays, in the same
dtype; torch has no int8 convolution to compare with. `windows_us` is the same weight as a linear
layer on copied windows, the way of GPUs and of formats without a kernel of their own. `product_us`
is the sparse product alone, on panels that are there already: a lower bound for any copying.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from sparse_engine.bench.accuracy import relative_error
from sparse_engine.bench.grid import Grid, sparsity_of
from sparse_engine.bench.layer import Run
from sparse_engine.bench.matrices import check_size
from sparse_engine.bench.panels import PanelProduct
from sparse_engine.bench.patterns import activation_dtype, random_weight
from sparse_engine.bench.rows import Conv1dRow, measured_fields, microseconds
from sparse_engine.bench.timing import CallSampler, samples_in_turn
from sparse_engine.config import DTYPES, SparseConfig
from sparse_engine.nn import SparseConv1d


@dataclass(frozen=True, kw_only=True)
class Conv1dGrid(Grid):
    """Convolutions of n output and k input channels on m sequences.

    Attributes:
        k: Input channels.
        width: Steps that the weight spans.
        steps: Steps of a sequence.
    """

    n: tuple[int, ...] = (128,)
    k: tuple[int, ...] = (128,)
    width: int = 5
    steps: int = 30

    def check(self) -> None:
        """Raise UsageError for other peers than torch and for large sizes."""
        self.check_torch_only()
        for n, k in product(self.n, self.k):
            check_size(n, k * self.width, "a convolution's weight")
            check_size(self.steps * max(self.m), max(n, k * self.width), "windows")

    def cases(self) -> list[tuple[str, int, int, str, float]]:
        """dtype, output and input channels, format and sparsity of each layer, each once."""
        axes = product(self.dtype, self.n, self.k, self.format, self.sparsity)
        return list(dict.fromkeys((*axis[:4], sparsity_of(axis[3], axis[4])) for axis in axes))

    def points(self) -> Iterator[tuple[ConvLayer, int]]:
        """Each layer with each number of sequences."""
        for dtype, n, k, spec, sparsity in self.cases():
            dense = random_conv(n, k, self.width, sparsity, spec)
            sparse = SparseConv1d.from_dense(dense, SparseConfig(spec, dtype))
            layer = ConvLayer(dense, sparse, spec, dtype, sparsity, self.steps)
            yield from ((layer, m) for m in self.tokens())

    def __len__(self) -> int:
        return len(self.cases()) * len(self.tokens())


def random_conv(n: int, k: int, width: int, sparsity: float, spec: str) -> nn.Conv1d:
    """torch's layer with `sparsity` zeros in the format's pattern, padded to keep the steps."""
    conv = nn.Conv1d(k, n, width, padding="same").eval().requires_grad_(False)
    conv.weight.copy_(random_weight(n, k * width, sparsity, spec).view(n, k, width))
    return conv


@dataclass(frozen=True)
class ConvLayer:
    """torch's layer and the sparse one of the same weight, on sequences of `steps` steps."""

    dense: nn.Conv1d
    sparse: SparseConv1d
    label: str
    dtype: str
    sparsity: float
    steps: int

    @property
    def name(self) -> str:
        """What a progress bar shows."""
        n, k, _ = self.dense.weight.shape
        return f"conv1d {n} x {k} {self.label} {self.sparsity:.0%} {self.dtype}"

    @property
    def key(self) -> Hashable:
        """Equal for layers of the same weight and packing."""
        return self.dtype, self.dense.weight.shape, self.label, self.sparsity, self.steps

    @property
    def _linear(self) -> Any:
        return self.sparse.linears[0]

    def kernels(self, m: int) -> tuple[str, ...]:
        """Name of the kernel for m sequences."""
        return (self._linear.kernel(m * self.steps),)

    @torch.inference_mode()
    def measure(self, m: int, run: Run) -> Conv1dRow:
        """This layer on m sequences in turn with torch's."""
        n, k, width = self.dense.weight.shape
        x = torch.randn(m, k, self.steps, generator=torch.Generator().manual_seed(1))
        x = x.to(activation_dtype(self.dtype))
        left, right = (width - 1) // 2, width // 2
        calls = {
            "time": CallSampler(lambda: self.sparse(x)),
            "windows": CallSampler(lambda: self.sparse.multiply_windows(x, left, right)),
        }
        if self.dtype != "int8":
            dense = copy.deepcopy(self.dense).to(DTYPES[self.dtype])
            calls["dense_time"] = CallSampler(lambda: dense(x))
        packed, tokens = self._linear.packed, m * self.steps
        on_panels = PanelProduct.of(packed, torch.randn(tokens, packed.shape[1]))
        if on_panels is not None:
            calls["product"] = CallSampler(on_panels)
        samples = samples_in_turn(calls, run.rounds)
        # The first sequence is compared with float64.
        truth = self.sparse.to_dense(torch.float32).double()(x[:1].double())
        nonzeros = int(packed.to_dense().count_nonzero())
        return Conv1dRow(
            op="conv1d",
            n=n,
            k=k,
            width=width,
            steps=self.steps,
            m=m,
            format=self.label,
            windows_us=microseconds(samples["windows"].median),
            product_us=microseconds(samples["product"].median) if on_panels else None,
            kernel=self._linear.kernel(tokens),
            refused={} if "dense_time" in calls else {"torch": "has no int8 convolution over time"},
            **measured_fields(
                samples,
                "dense_time" if "dense_time" in calls else None,
                dtype=self.dtype,
                nonzeros=nonzeros,
                elements=self.dense.weight.numel(),
                tokens=tokens,
                weight_bytes=packed.nbytes,
                roof_seconds=2e-9 * nonzeros * tokens / run.peaks[self.dtype],
                error=relative_error(self.sparse(x[:1]), truth),
            ),
        )
