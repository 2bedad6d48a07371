"""PackedSellP: SELL-P, whose buffers the CPU kernels read as the format stores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sparse_engine.formats import SellP
from sparse_engine.formats.rows import RowSource
from sparse_engine.formats.sellp import sellp_buffers
from sparse_engine.packings.base import Packing


@dataclass(frozen=True, eq=False, repr=False)
class PackedSellP(Packing, SellP):
    """The format as a packing; csrc/layouts/sellp.h draws the layout."""

    kind: ClassVar[str] = "sellp"
    backend: ClassVar[str] = "cpu"

    @classmethod
    def _build(cls, source: RowSource) -> dict[str, Any]:
        return source.tensors() if isinstance(source, SellP) else sellp_buffers(source)
