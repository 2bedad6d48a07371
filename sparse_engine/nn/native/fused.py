"""Fused projections: layers that read the same x, such as query, key and value, as one launch.

Backends fuse what they can (`Backend.fuse`), today BSR weights on a GPU. On the CPU native stacks
run whole layers. Fused weights are stored once: the layers' own values become views of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_engine.backends import backend_of_packing
from sparse_engine.formats import Format
from sparse_engine.modules.watch import HookWatch, same, version
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.native.proxy import Proxy
from sparse_engine.ops import check_linear, is_plain, run_linear

# After this many batches whose results were not all read, the layers run separately.
MAX_UNREAD = 8


class FusedWeights:
    """The weights of several layers as one, which is made again when a layer's weight changes."""

    def __init__(self, layers: Sequence[SparseLinear], gated: bool = False) -> None:
        """Fuse `layers` in the order of their rows; see `Backend.fuse` for `gated`."""
        self.layers, self.gated = tuple(layers), gated
        self._seen: tuple[Any, ...] = ()
        self._whole: tuple[Format, Tensor | None] | None = None

    def whole(self) -> tuple[Format, Tensor | None] | None:
        """The fused weight and bias; None where the layers do not fuse."""
        if not same(self._state(), self._seen):
            self._whole = self._fuse()
            self._seen = self._state()
        return self._whole

    def reset(self) -> None:
        """Drop the fused weight, as before layers move to another device."""
        self._seen, self._whole = (), None

    def _state(self) -> tuple[Any, ...]:
        """What must be unchanged for the fused weight to hold; its values are the layers' own."""
        return tuple(
            (layer.packed, layer.bias, version(layer.bias), version(layer._buffers.get("scales")))
            for layer in self.layers
        )

    def _fuse(self) -> tuple[Format, Tensor | None] | None:
        biases = [layer.bias for layer in self.layers]
        present = [bias for bias in biases if bias is not None]
        if present and len(present) < len(biases):
            return None
        packed = [layer.packed for layer in self.layers]
        fused = backend_of_packing(packed[0]).fuse(packed, self.gated)
        if fused is None:
            return None
        whole, parts = fused
        for layer, part in zip(self.layers, parts, strict=True):
            layer.share_buffers(part)
        return whole, torch.cat(present) if present else None


class FusedProjections:
    """Layers that are called with the same x, one after the other: the first call runs them all."""

    def __init__(self, layers: Sequence[SparseLinear]) -> None:
        """Make `layers` call this object where their backend fuses projections."""
        self.weights = FusedWeights(layers)
        # x (a weak reference), its version, its address, and the results not yet read. One
        # attribute, so that threads never see a part of it.
        self._ready: tuple[Any, int, int, dict[int, Tensor]] | None = None
        self._unread = 0
        for layer in layers:
            layer.fused = self

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """None: copies of the layers run one by one until they are fused again."""

    def reset(self) -> None:
        """Drop weights and results."""
        self._ready = None
        self.weights.reset()

    def run(self, layer: SparseLinear, x: Tensor) -> Tensor | None:
        """y of one layer; None if it has to run alone.

        Inference tensors have no version counter: x must not be written to between the calls of the
        layers.
        """
        ready = self._ready
        if ready is not None and ready[0]() is x and ready[1:3] == (version(x), x.data_ptr()):
            y = ready[3].pop(id(layer), None)
            if y is not None:
                return y
        fused = self.weights.whole() if self._unread < MAX_UNREAD else None
        if fused is None:
            return None
        # Where layers are not called with the same x, the other layers' results are wasted.
        self._unread = self._unread + 1 if ready is not None and ready[3] else 0
        y = run_linear(fused[0], x, fused[1], "none", None)
        parts = y.split([one.out_features for one in self.weights.layers], -1)
        results = {id(one): p for one, p in zip(self.weights.layers, parts, strict=True)}
        own = results.pop(id(layer))
        self._ready = (weakref.ref(x), version(x), x.data_ptr(), results)
        return own


class SparseGatedMLP(Proxy):
    """Proxy of a feed-forward module, down(act(gate(x)) * up(x)), which holds its submodules.

    Where the backend fuses projections, gate and up are one launch with the product in its
    epilogue. Elsewhere, and where torch traces, the original runs.
    """

    def __init__(self, original: nn.Module, gate: str, up: str, down: str, activation: str) -> None:
        """gate, up, down: names of submodules; activation: as `se.ops.linear` has it."""
        super().__init__(original)
        self.names, self.activation = (gate, up, down), activation
        # Modules that the epilogue replaces.
        self.others = {n: m for n, m in self._modules.items() if n not in self.names}
        self._fused: FusedWeights | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fused": None}

    def forward(self, x: Tensor) -> Tensor:
        """y [..., hidden] of x [..., hidden]."""
        fused = self._weights() if is_plain(x) else None
        if fused is None or x.device != fused[0].device:
            return self.call_original(x)
        weight, bias = fused
        check_linear(x, weight.shape, None, None, backend_of_packing(weight).input_dtypes)
        inner = run_linear(weight, x, bias, self.activation, None)
        down: Any = self.get_submodule(self.names[2])
        if not isinstance(down, SparseLinear) and down.weight.is_floating_point():
            inner = inner.to(down.weight.dtype)  # T5 keeps it in float32
        return down(inner)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._fused = None
        return super()._apply(fn, recurse)

    def _weights(self) -> tuple[Format, Tensor | None] | None:
        gate, up = (self.get_submodule(name) for name in self.names[:2])
        if self.training or not isinstance(gate, SparseLinear) or not isinstance(up, SparseLinear):
            return None
        if not backend_of_packing(gate.packed).fuses_projections:
            return None
        if any(self._modules.get(name) is not module for name, module in self.others.items()):
            return None
        if HookWatch((self.original, *self.original.children())).changed():
            return None
        if self._fused is None or self._fused.layers != (gate, up):
            self._fused = FusedWeights((gate, up), gated=True)
        return self._fused.whole()
