"""A packed weight as many tokens are multiplied with it, and as a few are: native blocks need both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sparse_engine import _core
from sparse_engine.formats import Format, SellP
from sparse_engine.packings.cpu.bits import Bits
from sparse_engine.packings.cpu.int8 import Bits8, QuadRuns, SellP8
from sparse_engine.packings.cpu.runs import Runs, chunk_rows
from sparse_engine.packings.cpu.strips import K_BLOCK as STRIPS_BLOCK
from sparse_engine.packings.cpu.strips import Strips

# From this share of zeros on, SELL-P is faster than a bitmask: with weights from memory, as a decoder
# reads them (bench/decode.py --format), and from L2, as the steps of a recurrent network do (bench
# kernel --op lstm). A bitmask's bytes count where memory is the limit, its instructions elsewhere.
SELLP_FROM = {"float32": 0.85, "bfloat16": 0.85, "int8": 0.95}
STEPS_SELLP_FROM = {"float32": 0.65, "bfloat16": 0.65, "int8": 0.8}
# Columns of a K-block and rows of a chunk for panels of 16 or 32 sequences.
STEP_BLOCK, STEP_CHUNK = 256, 256


def for_panels(packed: Format) -> Format:
    """What panels of tokens are multiplied with: `packed` itself where it can be."""
    if isinstance(packed, Runs | Strips):  # QuadRuns are Runs
        return packed
    return (QuadRuns if _int8(packed) else Runs).from_dense(packed.to_dense())


def for_steps_on_panels(packed: Format, together: int) -> Format:
    """The same for the hidden weights of a recurrent network, with sequences in the lanes.

    together: rows that no chunk may cut. Panels are narrow, so that more of their columns stay in L1;
    and a chunk's results are read at once.
    """
    if isinstance(packed, Strips) and together % packed.height == 0:
        if packed.block <= STRIPS_BLOCK:
            return packed
        return Strips.from_dense(packed.to_dense(), packed.height)
    chunk = max(1, min(STEP_CHUNK, chunk_rows(packed.shape[0])) // together) * together
    if isinstance(packed, Runs) and (packed.chunk, packed.block) == (chunk, STEP_BLOCK):
        return packed
    cls = QuadRuns if _int8(packed) else Runs
    return cls.from_dense(packed.to_dense(), chunk=chunk, block=STEP_BLOCK)


def for_rows(packed: Format, sellp_from: Mapping[str, float] = SELLP_FROM) -> Format:
    """What a few tokens read fastest: as stored, or what has fewer bytes and instructions."""
    if not isinstance(packed, Runs):
        return packed
    dtype = str(packed.values.dtype).removeprefix("torch.")
    expands = not _core.linear_kernel("bits", dtype, 1).endswith("scalar")
    cls: Any = Bits if expands and packed.sparsity < sellp_from[dtype] else SellP
    if _int8(packed):
        cls = {Bits: Bits8, SellP: SellP8}[cls]
    return cls.from_dense(packed.to_dense())


def for_steps_on_rows(packed: Format) -> Format:
    """The same for the hidden weights of a recurrent network: vectors of activations lie in L1."""
    if isinstance(packed, Strips) and packed.block < packed.shape[1]:
        return Strips.from_dense(packed.to_dense(), packed.height, packed.shape[1])
    return for_rows(packed, STEPS_SELLP_FROM)


def _int8(packed: Format) -> bool:
    return packed.values.dtype == torch.int8
