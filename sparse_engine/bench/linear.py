"""bench kernel --op linear: one linear layer against its peers.

Dense is the fastest of the dense peers in the same dtype. The sparse call is the whole op on
row-major tensors: activations into panels, the kernel, results back out. `panels_time_us` is the
product alone, on activations that are in panels already and stay there, as inside a native stack.
The roof is max(bytes read / bandwidth, 2 nnz m / peak FLOP/s); bandwidth and peak are measured in
the same run, bandwidth on a footprint of the same size.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.backends import CPU
from sparse_engine.backends.cpu_table import FEW_TOKENS
from sparse_engine.bench.accuracy import max_error
from sparse_engine.bench.hints import likely_faster
from sparse_engine.bench.layer import Run
from sparse_engine.bench.panels import PanelProduct
from sparse_engine.bench.patterns import activation_dtype
from sparse_engine.bench.rows import LinearRow, measured_fields, microseconds
from sparse_engine.bench.timing import CallSampler, Sampler, samples_in_turn
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format, FormatSpec
from sparse_engine.ops import linear_kernel, run_linear

# Tokens whose results are compared with float64.
CHECKED = 128


@dataclass(frozen=True)
class LinearLayer:
    """One sparse layer, packed for many tokens and, where that differs, for a few.

    Attributes:
        weight: What dense peers multiply by: [out, in], float32 values that the dtype can hold.
        spec: The format.
        dtype: Dtype of the stored weight.
        source: The random pattern, file or layer that the weight comes from.
        chosen: Whether "auto" chose the format.
    """

    weight: Tensor
    spec: str
    dtype: str
    source: str = "random"
    chosen: bool = False

    def __post_init__(self) -> None:
        rounded = self.weight.to(activation_dtype(self.dtype)).float()
        object.__setattr__(self, "weight", rounded)

    @property
    def name(self) -> str:
        """What a progress bar shows."""
        n, k = self.weight.shape
        return f"{n}x{k} {self.label} {1 - self._nonzeros / (n * k):.0%} {self.dtype}"

    @property
    def label(self) -> str:
        """The format as rows name it: "auto:csr" where "auto" chose it."""
        return f"auto:{self.spec}" if self.chosen else self.spec

    @property
    def key(self) -> Hashable:
        """Equal for layers of the same weight and packing."""
        return self.dtype, self.weight.shape, self.spec, self.source, self._nonzeros

    @cached_property
    def _nonzeros(self) -> int:
        return int(self.weight.count_nonzero())

    @cached_property
    def packed(self) -> Format:
        """The packing for many tokens."""
        weight = self.weight.to(activation_dtype(self.dtype))
        return CPU.pack(FormatSpec.parse(self.spec).from_dense(weight), self.dtype)

    @cached_property
    def stored(self) -> Tensor:
        """What the packing holds, dense: int8 is dequantised."""
        return self.packed.to_dense() if self.dtype == "int8" else self.weight

    def packed_for(self, tokens: int) -> Format:
        """The packing of a layer whose config has only as many tokens."""
        return self._packed_for_few if tokens <= FEW_TOKENS else self.packed

    @cached_property
    def _packed_for_few(self) -> Format:
        spec = FormatSpec.parse(self.spec)
        if isinstance(self.packed, CPU.packing_for(spec, self.dtype, (FEW_TOKENS,))):
            return self.packed
        stored = self.stored.to(activation_dtype(self.dtype))
        return CPU.pack(spec.from_dense(stored), self.dtype, (FEW_TOKENS,))

    def kernels(self, m: int) -> tuple[str, ...]:
        """Name of the kernel for m tokens."""
        return (linear_kernel(self.packed_for(m), m),)

    @torch.inference_mode()
    def measure(self, m: int, run: Run) -> LinearRow:
        """This layer on m tokens in turn with the peers.

        Raises:
            UsageError: No dense peer runs.
        """
        packed, (n, k) = self.packed_for(m), self.weight.shape
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(1))
        x = x.to(activation_dtype(self.dtype))

        def call() -> Tensor:
            return run_linear(packed, x, None, "none", None)

        y = call()
        error = max_error(y, self.stored, x, most=CHECKED)
        samplers: dict[str, Sampler] = {"time": CallSampler(call)}
        if (on_panels := PanelProduct.of(packed, x)) is not None:
            samplers["panels"] = CallSampler(on_panels)
            error = max(error, max_error(on_panels.rows(m), self.stored, x, most=CHECKED))
        params = FormatSpec.parse(self.spec).params
        block = params.get("rows", 1), params.get("cols", 1)
        peers = run.peer_set.start(self.weight, x.float(), self.dtype, block)
        samples = samples_in_turn(samplers | dict(peers), run.rounds)
        peer_us = {
            peer.name: microseconds(samples[peer.name].median)
            for peer in run.peer_set.peers
            if peer.name in samples
        }
        dense = [peer.name for peer in run.peer_set.peers if peer.dense and peer.name in peer_us]
        if not dense:
            reasons = "; ".join(f"{name} {why}" for name, why in run.peer_set.refused.items())
            raise UsageError(f"no dense engine to compare with: {reasons}")
        fastest = min(dense, key=peer_us.__getitem__)
        nonzeros = int(self.stored.count_nonzero())
        moved = packed.nbytes + x.nbytes + y.nbytes
        bandwidth = _core.read_gbytes_per_second(max(moved, 4096))
        return LinearRow(
            op="linear",
            n=n,
            k=k,
            m=m,
            format=self.label,
            kernel=linear_kernel(packed, m),
            panels_time_us=microseconds(samples["panels"].median) if on_panels else None,
            dense_engine=fastest,
            peers=peer_us,
            refused=dict(run.peer_set.refused),
            source=self.source,
            likely_faster=likely_faster(self.weight, self.spec, m, self.dtype),
            gbytes_per_s=round(moved / samples["time"].median * 1e-9, 2),
            **measured_fields(
                samples,
                fastest,
                dtype=self.dtype,
                nonzeros=nonzeros,
                elements=n * k,
                tokens=m,
                weight_bytes=packed.nbytes,
                roof_seconds=1e-9
                * max(moved / bandwidth, 2.0 * nonzeros * m / run.peaks[self.dtype]),
                error=error,
            ),
        )
