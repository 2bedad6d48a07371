"""The weight as kernels read it: made from a format when a layer is built, and back without loss.

`PACKINGS` lists what the CPU kernels read. SELL-P is a format that they read as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparse_engine.errors import UsageError
from sparse_engine.formats import BSR, CSR, NM, Bitmask, Format, SellP
from sparse_engine.packings.bits import Bits
from sparse_engine.packings.groups import Groups
from sparse_engine.packings.int8 import Bits8, Groups8, QuadRuns, SellP8
from sparse_engine.packings.runs import Runs
from sparse_engine.packings.strips import Strips

INT8 = (QuadRuns, SellP8, Bits8, Groups8)
PACKINGS = (Runs, QuadRuns, Strips, SellP, SellP8, Bits, Bits8, Groups, Groups8)


def packing_of(
    format_class: type[Format], params: Mapping[str, int], dtype: str
) -> type[Runs | Strips | SellP | Bits | Groups]:
    """What the CPU kernels read for a weight in a format, with values of `dtype`."""
    int8 = dtype == "int8"
    if issubclass(format_class, SellP):
        return SellP8 if int8 else SellP
    if issubclass(format_class, Bitmask):
        return Bits8 if int8 else Bits
    if issubclass(format_class, NM) and Groups.params_problem(params) is None:
        return Groups8 if int8 else Groups
    if int8:
        return QuadRuns
    # Tall blocks share an index among the lanes of a vector. Of lower ones a pair of rows has all
    # columns in common, which is what runs are for.
    return Strips if issubclass(format_class, BSR) and params["rows"] % 16 == 0 else Runs


def pack(weight: Format, device_type: str = "cpu", dtype: str | None = None) -> Format:
    """What the kernels of a device read for `weight`.

    On the CPU what `packing_of` says, for dtype "int8" or the weight's own. The Triton kernel reads
    BSR as it is; other formats have no GPU kernel and stay what they are.
    """
    if isinstance(weight, INT8):
        return weight
    if device_type != "cpu":
        if dtype == "int8":
            raise UsageError(f"int8 has kernels on the CPU only, the weight is on {device_type}")
        return weight
    if isinstance(weight, PACKINGS) and dtype != "int8":
        return weight
    cls = packing_of(type(weight), weight.params(), dtype or "")
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


__all__ = [
    "PACKINGS",
    "Bits",
    "Bits8",
    "Groups",
    "Groups8",
    "QuadRuns",
    "Runs",
    "SellP8",
    "Strips",
    "pack",
    "packing_of",
]
