"""BSR times many tokens on Hopper and later: persistent programs with TMA loads.

One program a processor iterates over tiles of y. The tensor memory accelerator (TMA) loads tiles of
x and blocks of the weight to shared memory, with zeros beyond the end of x.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import finish_wide
from .launch import (
    FUSED,
    INTERPRETED,
    SHARED_BYTES,
    Epilogue,
    cdiv,
    processors,
    shared_bytes,
)
from .multiply import tile_of
from .tiles import TMA_COLS, tma_config

MIN_TOKENS = 128


@triton.jit
def multiply_tma(
    acc: tl.tensor,  # [TILE, ROWS] float32
    x: tl.tensor,  # descriptor [tokens, in_features] in tiles of [TILE, STEP]
    values: tl.tensor,  # descriptor [blocks x ROWS, COLS] in tiles of [ROWS, STEP]
    indices: tl.tensor,
    row: tl.tensor,  # of x
    begin: tl.tensor,
    end: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    UPCAST: tl.constexpr,
) -> tl.tensor:
    """acc + x Wᵀ for the blocks begin .. end - 1; loads indices a step ahead, as `multiply`."""
    STEPS: tl.constexpr = COLS // STEP
    column = tl.load(indices + begin, mask=begin < end, other=0)
    for s in range(begin * STEPS, end * STEPS):
        within = s % STEPS * STEP
        a = x.load([row, column * COLS + within])  # [TILE, STEP]
        w = values.load([s // STEPS * ROWS, within])  # [ROWS, STEP]
        column = tl.load(indices + (s + 1) // STEPS, mask=s + 1 < end * STEPS, other=0)
        if UPCAST:
            a = a.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(a, w.T, acc)
    return acc


@triton.jit
def linear_bsr_tma_kernel(
    x: tl.tensor,  # descriptor, see multiply_tma
    values: tl.tensor,  # descriptor
    indices: tl.tensor,  # [blocks]
    pointers: tl.tensor,  # [block rows + 1]
    order: tl.tensor,  # [block rows of y]
    scales: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    out_features: tl.tensor,  # of y
    residual_stride: tl.tensor,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One program: tiles program_id, program_id + programs, ... of y, in the order of `tile_of`."""
    tiles = tl.cdiv(tokens, TILE)
    block_rows = tl.cdiv(out_features, ROWS)
    for work in range(tl.program_id(0), tiles * block_rows, tl.num_programs(0)):
        row, block_row = tile_of(work, tokens, out_features, order, TILE, ROWS, GROUP)
        begin = tl.load(pointers + block_row)
        end = tl.load(pointers + block_row + 1)
        acc = tl.zeros((TILE, ROWS), dtype=tl.float32)
        gate = acc
        acc = multiply_tma(acc, x, values, indices, row, begin, end, ROWS, COLS, STEP, UPCAST)
        if GATED:
            begin = tl.load(pointers + block_rows + block_row)
            end = tl.load(pointers + block_rows + block_row + 1)
            gate = multiply_tma(gate, x, values, indices, row, begin, end, ROWS, COLS, STEP, UPCAST)
        m = row + tl.arange(0, TILE)
        finish_wide(
            acc, gate, m, block_row * ROWS, tokens, out_features, scales, bias, residual,
            residual_stride, y, TILE, ROWS,
            ACTIVATION, GATED, HAS_SCALES, HAS_BIAS, HAS_RESIDUAL,
        )  # fmt: skip


def tma_shape_problem(values: Tensor, tokens: int) -> str | None:
    """Why the kernel does not take a weight times so many tokens, or None."""
    if values.dtype not in (torch.float16, torch.bfloat16):
        return f"values are {values.dtype}: takes float16 and bfloat16"
    if values.shape[2] < TMA_COLS or tokens < MIN_TOKENS:
        return f"takes blocks of {TMA_COLS} or more columns, and {MIN_TOKENS} or more tokens"
    if values.shape[0] == 0:
        return "the weight has no blocks"
    return None


@cache
def has_tma(device: torch.device) -> bool:
    """Whether a device has TMA and enough shared memory, which consumer cards lack.

    True for the interpreter, which simulates both.
    """
    if device.type != "cuda":
        return True
    known = torch.cuda.get_device_capability(device) >= (9, 0)
    return known and shared_bytes(device) >= SHARED_BYTES


def tma_problem(x: Tensor, values: Tensor) -> str | None:
    """Why the kernel does not take these operands, or None."""
    if not has_tma(x.device):
        return "the GPU has no tensor memory accelerator, or little shared memory"
    if (
        x.stride(1) != 1
        or x.stride(0) % 8
        or x.stride(0) < x.shape[1]
        or x.data_ptr() % 16
        or values.data_ptr() % 16
    ):
        return "rows of x must be contiguous and start at multiples of 16 bytes"
    return tma_shape_problem(values, x.shape[0])


def linear_bsr_tma(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    pointers: Tensor,
    order: Tensor,
    epilogue: Epilogue,
    y: Tensor,
) -> None:
    """Write y for operands without a `tma_problem`."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    blocks, rows, cols = values.shape
    count = processors(x.device)
    config = tma_config(x.shape[0], rows, order.numel(), epilogue.gated, count)
    tile = config.tile
    work = cdiv(x.shape[0], tile) * order.numel()
    grid = (min(count, work),)
    with torch.cuda.device_of(x):
        linear_bsr_tma_kernel[grid](
            TensorDescriptor.from_tensor(x, [tile, TMA_COLS]),
            TensorDescriptor.from_tensor(values.view(blocks * rows, cols), [rows, TMA_COLS]),
            indices,
            pointers,
            order,
            *epilogue.tensors(y),
            x.shape[0],
            epilogue.out_features,
            epilogue.residual_stride,
            TILE=tile,
            ROWS=rows,
            COLS=cols,
            STEP=TMA_COLS,
            GROUP=8,
            **epilogue.flags,
            UPCAST=INTERPRETED,
            num_warps=config.warps,
            **FUSED,
            num_stages=config.stages,
        )
