"""Tile sizes, which shared memory, registers and the number of processors determine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .launch import PROCESSORS, SHARED_BYTES, cdiv, power_of_2

# Shared memory that is reserved besides the tiles in flight.
EPILOGUE_BYTES = 16 * 1024
# Up to this many tokens reading the weight dominates: rows of blocks are split among programs.
FEW_TOKENS = 64
# Columns of a tile that the tensor memory accelerator (TMA) loads: 128 bytes.
TMA_COLS = 64


@dataclass(frozen=True)
class Config:
    """Tokens (`tile`) and warps of a program, columns of a step, and steps in flight (`stages`)."""

    tile: int
    warps: int
    step: int
    stages: int


def large_tile(
    tokens: int, rows: int, block_rows: int, itemsize: int, gated: bool, processors: int
) -> int:
    """Tokens of a program that multiplies many by `rows` rows.

    x and the weight are read from L2 once a tile: FLOP per byte are 1 / (1 / rows + 1 / tile). So a
    tile is as large as its sums fit the registers, unless processors would be left without a tile.
    """
    # float32 takes three passes a product, and twice the shared memory.
    tile = min(256, 256 * 128 // (rows * (1 + gated))) if itemsize == 2 else 64
    tile = min(tile, power_of_2(tokens))
    while tile > 32 and cdiv(tokens, tile) * block_rows < processors:
        tile //= 2
    return tile


@lru_cache(1024)
def choose_config(
    tokens: int,
    rows: int,
    cols: int,
    itemsize: int,
    block_rows: int,
    gated: bool = False,
    shared: int = SHARED_BYTES,
    processors: int = PROCESSORS,
) -> Config:
    """The tile of a BSR product.

    Args:
        tokens: Rows of x.
        rows, cols: Of a block.
        itemsize: Bytes of an element of x.
        block_rows: Rows of blocks of y.
        gated: Whether a program computes a row of blocks of either half of the weight.
        shared: Bytes of shared memory that a program may use.
        processors: Streaming multiprocessors of the GPU.
    """
    # 128 bytes are a row of the widest swizzle that wgmma reads; longer steps only cost registers.
    step = 128 // itemsize
    if tokens <= FEW_TOKENS:
        # Bytes in flight limit the speed: several small programs on a processor, long steps.
        tile = max(16, power_of_2(max(tokens, 1)))
        warps = {16: 1, 32: 2}.get(rows, 4) if tile < 64 else 4
        if tile < 64:
            step *= 2
    else:
        tile = large_tile(tokens, rows, block_rows, itemsize, gated, processors)
        warps = 8 if tile * rows * (1 + gated) > 64 * 64 else 4
    stages = (shared - EPILOGUE_BYTES) // ((tile + rows) * step * itemsize)
    return Config(tile, warps, step, max(1, min(4, stages)))


@lru_cache(1024)
def tma_config(
    tokens: int, rows: int, block_rows: int, gated: bool, processors: int = PROCESSORS
) -> Config:
    """The tile of a product with TMA loads; arguments as in `choose_config`."""
    tile = max(128, large_tile(tokens, rows, block_rows, 2, gated, processors))
    return Config(tile, 8 if tile * rows * (1 + gated) > 64 * 64 else 4, TMA_COLS, 4)
