"""A packed weight for the shapes it is multiplied with: panels of tokens, and rows of a few tokens.

Native layers need both. What a weight is packed as already is kept wherever it will do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sparse_engine import _core
from sparse_engine.formats import Format
from sparse_engine.formats.checks import dtype_name
from sparse_engine.packings.cpu.bits import Bits
from sparse_engine.packings.cpu.columns import Columns, Columns8
from sparse_engine.packings.cpu.int8 import QuadRuns
from sparse_engine.packings.cpu.runs import Runs, chunk_rows
from sparse_engine.packings.cpu.sellp import PackedSellP
from sparse_engine.packings.cpu.strips import K_BLOCK as STRIPS_BLOCK
from sparse_engine.packings.cpu.strips import Strips
from sparse_engine.packings.cpu.tiles import PackedTiles

# From this share of zeros on, SELL-P is faster than a bitmask: with weights from memory, as a
# decoder reads them (bench/decode.py --format), and from L2, as the steps of a recurrent network do
# (bench kernel --op lstm). A bitmask's bytes count where memory is the limit, its
# instructions elsewhere.
SELLP_FROM = {"float32": 0.85, "bfloat16": 0.85, "int8": 0.95}
STEPS_SELLP_FROM = {"float32": 0.65, "bfloat16": 0.65, "int8": 0.8}
# Columns of a K-block and rows of a chunk for panels of 16 or 32 sequences.
STEP_BLOCK, STEP_CHUNK = 256, 256


def in_lanes(packed: Format) -> Format:
    """Lists of columns, which only tiles multiply, as a packing for the lanes of vectors."""
    if isinstance(packed, Columns8):
        return QuadRuns.from_format(packed)
    if isinstance(packed, Columns):
        return Strips.from_format(packed, height=packed.height)
    return packed


def for_panels(packed: Format) -> Format:
    """The packing for panels of tokens."""
    packed = in_lanes(packed)
    return packed if isinstance(packed, Runs | Strips) else Runs.from_format(packed)


def for_layers(packed: Format) -> Format:
    """The packing for the panels of native layers, which also multiply tiles."""
    in_tiles = isinstance(packed, PackedTiles) and packed.dtype != torch.float32
    if in_tiles or isinstance(packed, Columns):
        return packed
    return for_panels(packed)


def for_inputs(packed: Format) -> Format:
    """The packing for the input projections of a recurrent network, many steps at a time."""
    return packed if isinstance(packed, Columns) else for_panels(packed)


def for_steps_on_panels(packed: Format, together: int) -> Format:
    """The packing for the hidden weights of a recurrent network, with sequences in the lanes.

    Panels are narrow, so that more of their columns stay in L1; and a chunk's results are read at
    once.

    Args:
        packed: Weight [gates x units, in], the rows of a unit side by side.
        together: Rows that no chunk may cut.
    """
    packed = in_lanes(packed)
    if isinstance(packed, Strips) and together % packed.height == 0:
        fits = packed.block <= STRIPS_BLOCK
        return packed if fits else Strips.from_format(packed)
    chunk = max(1, min(STEP_CHUNK, chunk_rows(packed.shape[0])) // together) * together
    if isinstance(packed, Runs) and (packed.chunk, packed.block) == (chunk, STEP_BLOCK):
        return packed
    return Runs.from_format(packed, chunk=chunk, block=STEP_BLOCK)


def for_rows(packed: Format, sellp_from: Mapping[str, float] = SELLP_FROM) -> Format:
    """The packing that a few tokens read fastest: that with fewest bytes and instructions."""
    packed = in_lanes(packed)
    if not isinstance(packed, Runs):
        return packed
    dtype = dtype_name(packed.dtype)
    expands = not _core.linear_kernel("bits", dtype, 1).endswith("scalar")
    if expands and packed.sparsity < sellp_from[dtype]:
        return Bits.from_format(packed)
    return PackedSellP.from_format(packed)


def for_steps_on_rows(packed: Format) -> Format:
    """The packing for the hidden weights of a recurrent network, a sequence at a time.

    Vectors of activations stay in L1, so one K-block holds all columns.
    """
    packed = in_lanes(packed)
    if isinstance(packed, Strips) and packed.block < packed.shape[1]:
        return Strips.from_format(packed, block=packed.shape[1])
    return for_rows(packed, STEPS_SELLP_FROM)
