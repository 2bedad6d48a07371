"""On a GPU layers that read the same x are one launch: query, key and value, gate and up.

Nothing changes on the CPU, where native stacks run whole layers. Joined weights are held once: the layers'
own values become views of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.nn.linear import SparseLinear
from sparse_engine.ops import is_plain, run_linear
from sparse_engine.packings import Blocks


class JoinedWeights:
    """The weights of several layers as one, made anew when a layer's weight is another."""

    def __init__(self, layers: Sequence[SparseLinear], gated: bool = False) -> None:
        """layers: in the order of their rows; `gated`: of two, the first is activated, see linear_bsr."""
        self.layers, self.gated = tuple(layers), gated
        self._seen: tuple[Any, ...] = ()
        self._whole: tuple[Blocks, Tensor | None] | None = None

    def whole(self) -> tuple[Blocks, Tensor | None] | None:
        """The weight and the bias; None where they cannot be joined."""
        seen = tuple(layer.packed for layer in self.layers)
        if len(seen) != len(self._seen) or any(
            a is not b for a, b in zip(seen, self._seen, strict=True)
        ):
            self._whole = self._join(seen)
            self._seen = tuple(layer.packed for layer in self.layers)
        return self._whole

    def _join(self, packed: tuple[Any, ...]) -> tuple[Blocks, Tensor | None] | None:
        biases = [layer.bias for layer in self.layers]
        kinds = {
            (type(p), p.values.shape[1:], p.dtype, p.device, p.shape[1])
            if isinstance(p, Blocks)
            else (p,)
            for p in packed
        }
        whole_rows = all(isinstance(p, Blocks) and p.shape[0] % p.rows == 0 for p in packed)
        alike = not self.gated or packed[0].shape == packed[1].shape
        if len(kinds) > 1 or not whole_rows or not alike:
            return None
        if len({bias is None for bias in biases}) > 1:
            return None
        joined = Blocks.join(packed, self.gated)
        for layer, piece in zip(self.layers, joined.split(packed), strict=True):
            layer.values, layer.indices = piece.values, piece.indices
        present = [bias for bias in biases if bias is not None]
        return joined, torch.cat(present) if present else None


class Siblings:
    """Layers that are called with the same x, one after the other: the first call runs them all."""

    def __init__(self, layers: Sequence[SparseLinear]) -> None:
        """Let `layers` ask this object on a GPU."""
        self.weights = JoinedWeights(layers)
        self._x: weakref.ref[Tensor] | None = None
        self._version = 0
        self._ready: dict[int, Tensor] = {}
        for layer in layers:
            layer.siblings = self

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nothing: copies of the layers run one by one until they are joined anew."""

    def run(self, layer: SparseLinear, x: Tensor) -> Tensor | None:
        """y of one layer; None if it has to run alone."""
        known = self._x is not None and self._x() is x and self._version == _version(x)
        if known and id(layer) in self._ready:
            return self._ready.pop(id(layer))
        joined = self.weights.whole()
        if joined is None:
            return None
        y = run_linear(joined[0], x, joined[1], "none", None)
        parts = y.split([one.out_features for one in self.weights.layers], -1)
        self._x, self._version = weakref.ref(x), _version(x)
        self._ready = {id(one): p for one, p in zip(self.weights.layers, parts, strict=True)}
        return self._ready.pop(id(layer))


class SparseGatedMLP(nn.Module):
    """Stands in for a feed-forward module, down(act(gate(x)) * up(x)), and holds its submodules.

    On a GPU gate and up are one launch with the product in its epilogue; elsewhere, and where torch
    traces, the original runs.
    """

    def __init__(self, original: nn.Module, gate: str, up: str, down: str, activation: str) -> None:
        """gate, up, down: names of submodules; activation: as `se.ops.linear` has it."""
        super().__init__()
        self._modules = original._modules  # shared: a swap below either is seen by both
        self._original = (original,)  # in a tuple, so that it is no submodule
        self.names, self.activation = (gate, up, down), activation
        self._joined: JoinedWeights | None = None
        self.train(original.training)

    @property
    def original(self) -> nn.Module:
        """The module that this one stands for."""
        return self._original[0]

    def __getattr__(self, name: str) -> Any:
        """What callers look for on the original."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("_original")
            if original is None or name.startswith("__"):
                raise
            return getattr(original[0], name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_joined": None}

    def forward(self, x: Tensor) -> Tensor:
        """y [..., hidden] of x [..., hidden]."""
        joined = self._weights() if is_plain(x) else None
        if joined is None:
            return self.original(x)
        inner = run_linear(joined[0], x, joined[1], self.activation, None)
        return self.get_submodule(self.names[2])(inner)

    def _weights(self) -> tuple[Blocks, Tensor | None] | None:
        gate, up = (self.get_submodule(name) for name in self.names[:2])
        fit = isinstance(gate, SparseLinear) and isinstance(up, SparseLinear)
        if self.training or not fit or not isinstance(gate.packed, Blocks):
            return None
        if self._joined is None or self._joined.layers != (gate, up):
            self._joined = JoinedWeights((gate, up), gated=True)  # type: ignore[arg-type]
        return self._joined.whole()


def _version(x: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count."""
    return 0 if x.is_inference() else x._version
