"""RecurrentWeights: the sizes of a recurrent network and its sparse layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine import _core
from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.formats import FormatSpec
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.recurrent.rows import UNIT_TILE, step_biases
from sparse_engine.packings.cpu.purposes import for_steps_on_rows

GATES = _core.RECURRENT_GATES
"""Gates of a unit, by mode."""


@dataclass(frozen=True)
class DirectionLayers:
    """The sparse layers of one direction of a layer."""

    input: SparseLinear
    """W_ih: [rows, input features], with the rows of `interleave_gates`."""
    hidden: SparseLinear
    """W_hh: [rows, out_size]."""
    projection: SparseLinear | None
    """W_hr: [proj_size, hidden_size] of an LSTM with projection."""

    def biases(self, mode: str) -> tuple[Tensor | None, Tensor | None]:
        """The biases of the input and of the hidden product: see `step_biases`."""
        return step_biases(self.input.bias, self.hidden.bias, mode)


class RecurrentWeights(nn.Module):
    """The sizes of a network, with torch.nn's names, and its layers `ih_l0`, `hh_l0`, `hr_l0`,
    `ih_l0_reverse`, ...
    """

    state_sizes: tuple[int, ...]
    """Features of h, and of an LSTM's c."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """All-zero layers; on the device "meta" dense ones without values, to be replaced."""
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if size < 1:
                raise UsageError(f"{name} is {size}: give 1 or more")
        if proj_size and (mode != "LSTM" or not 0 < proj_size < hidden_size):
            raise UsageError("proj_size is for an LSTM, and smaller than hidden_size")
        self.mode = mode
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.bidirectional, self.proj_size = bias, bidirectional, proj_size
        self.state_sizes = (self.out_size, *((hidden_size,) if mode == "LSTM" else ()))
        rows = -(-hidden_size // UNIT_TILE) * UNIT_TILE * self.gates
        linear: Any = nn.Linear if str(device) == "meta" else SparseLinear
        options = {"device": device, "dtype": dtype}
        for layer in range(num_layers):
            features = input_size if layer == 0 else self.directions * self.out_size
            for suffix in self.suffixes(layer):
                self.add_module(f"ih_{suffix}", linear(features, rows, bias, **options))
                self.add_module(f"hh_{suffix}", linear(self.out_size, rows, bias, **options))
                if proj_size:
                    projection = linear(hidden_size, proj_size, False, **options)
                    self.add_module(f"hr_{suffix}", projection)

    @property
    def gates(self) -> int:
        """Rows of a weight for each unit."""
        return GATES[self.mode]

    @property
    def directions(self) -> int:
        """1, or 2 where bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def out_size(self) -> int:
        """Features of h: proj_size if there is one, else hidden_size."""
        return self.proj_size or self.hidden_size

    @property
    def state_count(self) -> int:
        """States of a sequence: one for each direction of each layer."""
        return self.num_layers * self.directions

    def suffixes(self, layer: int) -> tuple[str, ...]:
        """What the names of a layer's weights end with, one for each direction."""
        return (f"l{layer}", f"l{layer}_reverse")[: self.directions]

    def layers(self) -> list[tuple[str, SparseLinear]]:
        """The sparse layers and their names."""
        return [(n, child) for n, child in self.named_children() if isinstance(child, SparseLinear)]

    def directions_of(self, layer: int) -> list[DirectionLayers]:
        """The sparse layers of each direction of a layer."""
        found: dict[str, Any] = self._modules
        return [
            DirectionLayers(found[f"ih_{s}"], found[f"hh_{s}"], found.get(f"hr_{s}"))
            for s in self.suffixes(layer)
        ]


def packed_layer(
    part: str, weight: Tensor, bias: Tensor | None, config: SparseConfig
) -> SparseLinear:
    """A layer in the format that `config` asks for, or that is fastest.

    Args:
        part: "ih", "hh" or "hr".
        weight: [rows, features], interleaved but for "hr".
        bias: [rows] or None.
        config: Format "auto" times inputs at 128 tokens, and what runs at every step at one. Blocks
            of more than 16 rows become ones of 16, so that they do not exceed a gate's unit tile.
    """
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.float(), requires_grad=False)
    if config.format == "auto":
        spec = backend_of(weight).recurrent_format(weight.to(config.source_dtype), UNIT_TILE)
        tokens = (128 if part == "ih" else 1,)
        config = replace(config, format=spec or "auto", tokens=tokens)
    elif config.format.startswith("bsr:"):
        params = FormatSpec.parse(config.format).params
        rows = min(params["rows"], UNIT_TILE)
        config = replace(config, format=f"bsr:{rows}x{params['cols']}")
    layer = SparseLinear.from_dense(linear, config)
    if part == "hh" and layer.packed.name == "strips":
        # Steps read tall blocks as one K-block: packed so once, they need no second packing.
        return SparseLinear.from_format(for_steps_on_rows(layer.packed), layer.bias, layer.spec)
    return layer
