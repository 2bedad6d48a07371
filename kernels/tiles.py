"""How work is cut into tiles: by shared memory, registers, and how many processors want to be busy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .launch import PROCESSORS, SHARED_BYTES, cdiv, power_of_2

# Shared memory beside the tiles in flight.
EPILOGUE_BYTES = 16 * 1024
# Up to as many tokens the time is that of reading the weight: rows of blocks are shared out.
FEW_TOKENS = 64
# Columns of a tile that the tensor memory accelerator brings: 128 bytes.
TMA_COLS = 64


@dataclass(frozen=True)
class Config:
    """How the work is cut: tokens and warps of a program, columns of a step, steps in flight."""

    tile: int
    warps: int
    step: int
    stages: int


def large_tile(
    tokens: int, rows: int, block_rows: int, itemsize: int, gated: bool, processors: int
) -> int:
    """Tokens of a program that multiplies many by `rows` rows.

    x and the weight come from L2 once a tile: FLOP per byte are 1 / (1 / rows + 1 / tile), so a tile is as
    large as its sums fit the registers, but not so large that processors are left without one.
    """
    # Of float32 a product takes three passes, and twice the shared memory.
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
    """Tile for `tokens` rows of x of `itemsize` bytes an element, and `block_rows` rows of blocks of y.

    shared: bytes of shared memory that a program may have. processors: how many there are.
    """
    # 128 bytes are a row of the widest swizzle that wgmma reads; more only costs registers there.
    step = 128 // itemsize
    if tokens <= FEW_TOKENS:
        # Bytes in flight are what counts: several small programs on a processor, long steps.
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
    """Tile for blocks of so many rows."""
    tile = max(128, large_tile(tokens, rows, block_rows, 2, gated, processors))
    return Config(tile, 8 if tile * rows * (1 + gated) > 64 * 64 else 4, TMA_COLS, 4)
