"""What can be computed with a sparse weight. `reference` is the truth that every kernel meets."""

from __future__ import annotations

from sparse_engine.backends.cpu_ops import weight_handle
from sparse_engine.backends.operators import is_plain
from sparse_engine.ops import reference
from sparse_engine.ops.conv1d import run_conv1d
from sparse_engine.ops.linear import check_linear, linear, linear_kernel, pack, run_linear

__all__ = [
    "check_linear",
    "is_plain",
    "linear",
    "linear_kernel",
    "pack",
    "reference",
    "run_conv1d",
    "run_linear",
    "weight_handle",
]
