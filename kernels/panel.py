"""Gathers x within a panel of columns from shared memory, two tokens of 16 bits at once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_panel(
    x: tl.tensor,  # the panel of one token; the next token is x_stride further
    x_stride: tl.tensor,
    limit: tl.tensor,  # columns of the panel
    left: tl.tensor,  # tokens from this one on
    WIDTH: tl.constexpr,
    PAIR: tl.constexpr,
) -> tl.tensor:
    """One token as float32, or two of 16 bits side by side in uint32, which one gather picks."""
    k = tl.arange(0, WIDTH)
    one = tl.load(x + k, mask=k < tl.where(left > 0, limit, 0), other=0.0)
    if PAIR:
        two = tl.load(x + x_stride + k, mask=k < tl.where(left > 1, limit, 0), other=0.0)
        high = two.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return one.to(tl.uint16, bitcast=True).to(tl.uint32) | high
    else:
        return one.to(tl.float32)


@triton.jit
def unpack(both: tl.tensor, BFLOAT16: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The two elements of a uint32, as float32."""
    if BFLOAT16:
        low = (both << 16).to(tl.float32, bitcast=True)
        high = (both & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        low = (both & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (both >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high
