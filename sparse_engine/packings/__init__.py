"""The weight as kernels read it: made from a format when a layer is built, and back without loss.

`PACKINGS` lists what the CPU kernels read, `GPU_PACKINGS` what those of the GPU do. SELL-P is a format
that the CPU kernels read as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sparse_engine.errors import UsageError
from sparse_engine.formats import BSR, CSR, NM, Bitmask, Format, SellP
from sparse_engine.formats.sellp import MAX_INPUTS
from sparse_engine.packings.cpu.bits import Bits
from sparse_engine.packings.cpu.groups import Groups
from sparse_engine.packings.cpu.int8 import Bits8, Groups8, QuadRuns, SellP8
from sparse_engine.packings.cpu.runs import Runs
from sparse_engine.packings.cpu.strips import Strips
from sparse_engine.packings.cuda.blocks import Blocks
from sparse_engine.packings.cuda.ell import Ell
from sparse_engine.packings.cuda.packed_nm import PackedNM

INT8 = (QuadRuns, SellP8, Bits8, Groups8)
PACKINGS = (Runs, QuadRuns, Strips, SellP, SellP8, Bits, Bits8, Groups, Groups8)
PANEL_PACKINGS = (Runs, QuadRuns, Strips)
"""Those of PACKINGS whose kernels multiply panels: activations with tokens in the lanes."""
GPU_PACKINGS = (Blocks, Ell, PackedNM)
FEW_TOKENS = 4
"""As many tokens as a kernel with rows in the lanes takes at once."""
FLOAT16_ON_CPU = "float16 has kernels on GPUs only: use float32 or bfloat16 on the CPU"


def packing_of(
    format_class: type[Format],
    params: Mapping[str, int],
    dtype: str,
    tokens: Sequence[int] = (),
) -> type[Runs | Strips | SellP | Bits | Groups]:
    """What the CPU kernels read for a weight in a format, with values of `dtype`.

    tokens: the counts that the weight will be multiplied with, where they are known. Runs have tokens
    in the lanes, of which a few fill none: low blocks that meet only FEW_TOKENS are packed as SELL-P
    (in float; packages hold blocks of int8 as the kernels for any number of tokens do).
    """
    int8 = dtype == "int8"
    if issubclass(format_class, SellP):
        return SellP8 if int8 else SellP
    if issubclass(format_class, Bitmask):
        return Bits8 if int8 else Bits
    if issubclass(format_class, NM) and Groups.params_problem(params) is None:
        return Groups8 if int8 else Groups
    if int8:
        return QuadRuns
    few = bool(tokens) and max(tokens) <= FEW_TOKENS
    if issubclass(format_class, BSR) and params["rows"] % 16 and few:
        return SellP
    # Tall blocks share an index among the lanes of a vector. Of lower ones a pair of rows has all
    # columns in common, which is what runs are for.
    return Strips if issubclass(format_class, BSR) and params["rows"] % 16 == 0 else Runs


def pack(
    weight: Format,
    device_type: str = "cpu",
    dtype: str | None = None,
    tokens: Sequence[int] = (),
) -> Format:
    """What the kernels of a device read for `weight`.

    On the CPU what `packing_of` says, for dtype "int8" or the weight's own, and for `tokens` where they
    are known; on CUDA what `pack_gpu` makes.
    Elsewhere, as on the meta device, nothing is run, and the weight stays what it is.
    """
    if device_type == "cuda":
        return pack_gpu(weight, dtype)
    if isinstance(weight, INT8) or device_type != "cpu":
        return weight
    if dtype == "float16":
        raise UsageError(FLOAT16_ON_CPU)
    if isinstance(weight, PACKINGS) and dtype != "int8":
        return weight
    few = tokens if weight.shape[1] <= MAX_INPUTS else ()
    cls = packing_of(type(weight), weight.params(), dtype or "", few)
    if isinstance(weight, cls):
        return weight
    if issubclass(cls, Strips):
        assert isinstance(weight, BSR)
        return cls.from_dense(weight.to_dense(), height=weight.rows)
    if issubclass(cls, Groups):
        assert isinstance(weight, NM)
        return cls.from_nm(weight)
    if cls is Runs and isinstance(weight, CSR):
        return Runs.from_csr(weight)
    return cls.from_dense(weight.to_dense())


def pack_gpu(weight: Format, dtype: str | None = None) -> Format:
    """What the GPU kernels read for a format, with values of `dtype` or its own, on its device.

    Blocks and N:M that a kernel has stay what they are, everything else becomes single elements.
    """
    if isinstance(weight, GPU_PACKINGS):
        return weight
    wanted: torch.dtype = getattr(torch, dtype) if dtype else weight.dtype
    dense = weight.to_dense()
    if isinstance(weight, BSR) and Blocks.block_problem(*weight.block) is None:
        return Blocks.from_dense(dense, *weight.block, dtype=wanted)
    if isinstance(weight, NM) and PackedNM.params_problem(weight.params()) is None:
        return PackedNM.from_dense(dense, weight.keep, weight.of, wanted)
    return Ell.from_dense(dense, wanted)


__all__ = [
    "FLOAT16_ON_CPU",
    "GPU_PACKINGS",
    "PACKINGS",
    "Bits",
    "Bits8",
    "Blocks",
    "Ell",
    "Groups",
    "Groups8",
    "PackedNM",
    "QuadRuns",
    "Runs",
    "SellP8",
    "Strips",
    "pack",
    "pack_gpu",
    "packing_of",
]
