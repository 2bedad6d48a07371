"""Drop-in layers on packed sparse weights."""

from __future__ import annotations

from sparse_engine.nn.encoder import NativeEncoder
from sparse_engine.nn.linear import SparseLinear

__all__ = ["NativeEncoder", "SparseLinear"]
