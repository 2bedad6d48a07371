"""Rows of `bench kernel`: one measured point each, of a linear layer, a convolution or a network.

Every field is a column of `-o csv` and a key of `-o json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparse_engine import _core
from sparse_engine.bench.timing import Samples
from sparse_engine.config import DTYPES


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One measured point. Times are medians of one call in microseconds."""

    op: str
    n: int
    """Output features, output channels or units."""
    m: int
    """Tokens of a linear layer, else sequences."""
    sparsity: float
    format: str
    """The format as `FormatSpec` writes it; "auto:sellp" where "auto" chose sellp."""
    dtype: str
    isa: str
    threads: int
    time_us: float
    dense_time_us: float | None
    speedup: float | None
    """Dense time over sparse time; None where no dense engine has the dtype."""
    gflops: float
    """Two operations for each multiply-add with a non-zero."""
    roof_fraction: float
    """Time that memory bandwidth and peak rate allow at best, over the time that was measured."""
    weight_bytes: int
    dense_bytes: int
    max_rel_err: float
    """Largest error against float64 on the stored weight, over the largest output."""
    kernel: str
    refused: dict[str, str]
    """Why a peer did not run, one line each."""
    samples: int
    """Number of samples of each median."""
    spread_us: dict[str, tuple[float, float]]
    """10th and 90th percentile of the samples of each time, microseconds."""
    busy: float = 0.0
    """Share of the time that other programs used just before this point was measured."""


@dataclass(frozen=True, kw_only=True)
class LinearRow(KernelRow):
    """A linear layer of n outputs and k inputs on m tokens."""

    k: int
    dense_time_us: float
    speedup: float
    panels_time_us: float | None
    """The product on activations that are in panels already; None where no kernel reads panels."""
    dense_engine: str
    """Engine of `dense_time_us`: the fastest dense peer of the same dtype."""
    peers: dict[str, float]
    """Microseconds of every peer that ran."""
    source: str = "random"
    """The random pattern (see `Pattern`), or the file or layer of the weight."""
    gbytes_per_s: float = 0.0
    """Bytes of weight, activations and results over `time_us`."""
    likely_faster: str = ""
    """A format that the cost model expects to be faster for so many tokens, or none."""


@dataclass(frozen=True, kw_only=True)
class Conv1dRow(KernelRow):
    """A convolution over time of k input and n output channels on m sequences."""

    k: int
    width: int
    steps: int
    windows_us: float
    """The same convolution as a linear layer on copied windows."""
    product_us: float | None
    """The sparse product alone; None for a packing that multiplies no panels."""


@dataclass(frozen=True, kw_only=True)
class NetworkRow(KernelRow):
    """A recurrent network of n units on m sequences; `kernel` multiplies the hidden weights."""

    layers: int
    steps: int
    step_us: float
    """`time_us` for one step of one layer."""
    native_us: float | None = None
    """Time of a single step inside the native library; the rest of `time_us` is Python."""


def microseconds(seconds: float) -> float:
    """Seconds as rounded microseconds."""
    return round(seconds * 1e6, 2)


def measured_fields(
    samples: Mapping[str, Samples],
    dense: str | None,
    *,
    dtype: str,
    nonzeros: int,
    elements: int,
    tokens: int,
    weight_bytes: int,
    roof_seconds: float,
    error: float,
) -> dict[str, Any]:
    """The fields of `KernelRow` that follow from the samples of a point.

    Args:
        samples: Samples by name; "time" are those of the sparse call.
        dense: Name of the samples of the dense call; None where there is none.
        dtype: Dtype of the stored weight.
        nonzeros: Non-zeros of the weight.
        elements: Elements of the dense weight.
        tokens: Products of the weight with a vector in one call.
        weight_bytes: Bytes of the packed weight.
        roof_seconds: Least time of a call by bandwidth and peak rate.
        error: Largest error over the largest output.
    """
    seconds = samples["time"].median
    dense_seconds = None if dense is None else samples[dense].median
    return {
        "sparsity": round(1 - nonzeros / elements, 4),
        "dtype": dtype,
        "isa": _core.active_isa(),
        "threads": torch.get_num_threads(),
        "time_us": microseconds(seconds),
        "dense_time_us": None if dense_seconds is None else microseconds(dense_seconds),
        "speedup": None if dense_seconds is None else round(dense_seconds / seconds, 3),
        "gflops": round(2.0 * nonzeros * tokens / seconds * 1e-9, 2),
        "roof_fraction": round(roof_seconds / seconds, 3),
        "weight_bytes": weight_bytes,
        "dense_bytes": elements * DTYPES[dtype].itemsize,
        "max_rel_err": float(f"{error:.2e}"),
        "samples": len(samples["time"].seconds),
        "spread_us": {name: found.spread_us() for name, found in samples.items()},
    }
