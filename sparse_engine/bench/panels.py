"""The sparse product on panels, without the transpositions of row-major activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.formats import Format
from sparse_engine.ops import weight_handle

# For fewer tokens no kernel reads panels.
MIN_TOKENS = 16


@dataclass(frozen=True)
class PanelProduct:
    """The op as native layers call it: panels of float32 activations in and out.

    Attributes:
        weight: Handle of the packed weight [out, in].
        x: [panels, in, width]
        y: [panels, out, width]
    """

    weight: _core.Weight
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, packed: Format, x: Tensor) -> Self | None:
        """On x [tokens, in]; None for too few tokens, or a packing that multiplies no panels."""
        weight, (n, k) = weight_handle(packed), packed.shape
        width = weight.panel_width(len(x))
        if len(x) < MIN_TOKENS or not width:
            return None
        lanes = F.pad(x.float(), (0, 0, 0, -len(x) % width)).view(-1, width, k)
        panels = lanes.transpose(1, 2).contiguous()
        return cls(weight, panels, panels.new_empty(len(panels), n, width))

    def __call__(self) -> None:
        self.weight.linear_on_panels(self.x.numpy(), self.y.numpy())

    def rows(self, tokens: int) -> Tensor:
        """The result of the last call, [tokens, out]."""
        return self.y.transpose(1, 2).flatten(0, 1)[:tokens]
