"""Convolution over time on a sparse weight [out, channels x kernel]."""

from __future__ import annotations

from torch import Tensor

from sparse_engine.backends import backend_of_packing
from sparse_engine.backends.base import Window
from sparse_engine.formats import Format


def run_conv1d(packed: Format, x: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """y [batch, out, steps] of x [batch, channels, length], on checked arguments.

    The weight is a packing that its backend convolves, see `Backend.convolves`.
    """
    return backend_of_packing(packed).conv1d(packed, x, bias, window)


__all__ = ["Window", "run_conv1d"]
