"""Shared by the BSR kernels: the order of the tiles, and the loop over the blocks of one row."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(
    work: tl.tensor,
    tokens: tl.tensor,
    out_features: tl.tensor,
    order: tl.tensor,  # [block rows of y]
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """First token and block row of a tile of y.

    GROUP tiles of tokens go through all block rows before the next GROUP, so that their x stays in
    L2.
    """
    tiles = tl.cdiv(tokens, TILE)
    block_rows = tl.cdiv(out_features, ROWS)
    first = work // (GROUP * block_rows) * GROUP
    height = tl.minimum(tiles - first, GROUP)
    within = work % (GROUP * block_rows)
    return (first + within % height) * TILE, tl.load(order + within // height)


@triton.jit
def multiply(
    acc: tl.tensor,  # [TILE, ROWS] float32
    x_rows: tl.tensor,  # [TILE, 1], pointers to the rows of x
    inside: tl.tensor,  # [TILE], whether the row exists
    x_stride: tl.tensor,  # from one column of x to the next
    values: tl.tensor,  # [blocks, ROWS, COLS]
    indices: tl.tensor,  # [blocks]
    begin: tl.tensor,
    end: tl.tensor,
    in_features: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> tl.tensor:
    """acc + x Wᵀ for the blocks begin .. end - 1 of a row of blocks; UPCAST multiplies in float32.

    A step has STEP columns: a part of a block, or several blocks. Their index is loaded one step
    ahead. In the step itself the load would add a level of indirection, for which the pipeliner
    halves the number of tiles in flight.
    """
    k = tl.arange(0, STEP)  # [STEP]
    i = tl.arange(0, ROWS)  # [ROWS]
    if STEP <= COLS:
        STEPS: tl.constexpr = COLS // STEP  # of a block
        first = begin.to(tl.int64) * STEPS
        last = end.to(tl.int64) * STEPS
        w_cols = values + i[None, :] * COLS + k[:, None]  # [STEP, ROWS]
        column = tl.load(indices + begin, mask=begin < end, other=0)
        for s in range(first, last):
            at = column * COLS + s % STEPS * STEP + k  # [STEP]
            mask = inside[:, None] & (at < in_features)[None, :]
            a = tl.load(x_rows + at[None, :] * x_stride, mask=mask, other=0.0)  # [TILE, STEP]
            w = tl.load(w_cols + (s // STEPS * (ROWS * COLS) + s % STEPS * STEP))  # [STEP, ROWS]
            column = tl.load(indices + (s + 1) // STEPS, mask=s + 1 < last, other=0)
            if UPCAST:
                a = a.to(tl.float32)
            acc = tl.dot(a, w.to(a.dtype), acc, input_precision=PRECISION)
    else:
        BLOCKS: tl.constexpr = STEP // COLS  # of a step
        block = k // COLS  # [STEP]
        w_cols = values + i[None, :] * COLS + (block * (ROWS * COLS) + k % COLS)[:, None]
        columns = tl.load(indices + begin + block, mask=begin + block < end, other=0)  # [STEP]
        for j in range(begin.to(tl.int64), end.to(tl.int64), BLOCKS):
            live = j + block < end  # [STEP]
            at = columns * COLS + k % COLS
            mask = inside[:, None] & (live & (at < in_features))[None, :]
            # x may be transposed: a column of x then has contiguous tokens.
            x_at = x_rows + at.to(tl.int64)[None, :] * x_stride
            a = tl.load(x_at, mask=mask, other=0.0)
            w = tl.load(w_cols + j * (ROWS * COLS), mask=live[:, None], other=0.0)
            ahead = j + BLOCKS + block
            columns = tl.load(indices + ahead, mask=ahead < end, other=0)
            if UPCAST:
                a = a.to(tl.float32)
            acc = tl.dot(a, w.to(a.dtype), acc, input_precision=PRECISION)
    return acc
