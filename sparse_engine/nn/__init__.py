"""Drop-in layers on packed sparse weights."""

from __future__ import annotations

from sparse_engine.nn.decoder import NativeDecoder
from sparse_engine.nn.encoder import NativeEncoder
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.stack import NativeStack

__all__ = ["NativeDecoder", "NativeEncoder", "NativeStack", "SparseLinear"]
