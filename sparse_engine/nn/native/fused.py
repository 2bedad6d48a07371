"""On a GPU layers that read the same x are one launch: query, key and value, gate and up.

Nothing changes on the CPU, where native stacks run whole layers. Joined weights are held once: the layers'
own values become views of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_engine.backends import CUDA
from sparse_engine.modules.watch import HookWatch
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.native.proxy import Proxy
from sparse_engine.nn.recurrent.weights import same, version
from sparse_engine.ops import check_linear, is_plain, run_linear
from sparse_engine.packings.cuda.blocks import Blocks

# After this many batches whose results were not all read, the layers run separately.
MAX_UNREAD = 8


class FusedWeights:
    """The weights of several layers as one, made anew when a layer's weight is another."""

    def __init__(self, layers: Sequence[SparseLinear], gated: bool = False) -> None:
        """layers: in the order of their rows; `gated`: of two, the first is activated, see linear_bsr."""
        self.layers, self.gated = tuple(layers), gated
        self._seen: tuple[Any, ...] = ()
        self._whole: tuple[Blocks, Tensor | None] | None = None

    def whole(self) -> tuple[Blocks, Tensor | None] | None:
        """The weight and the bias; None where they cannot be joined."""
        if not same(self._now(), self._seen):
            self._whole = self._join(tuple(layer.packed for layer in self.layers))
            self._seen = self._now()
        return self._whole

    def reset(self) -> None:
        """Let go of everything, as before weights move elsewhere."""
        self._seen, self._whole = (), None

    def _now(self) -> tuple[Any, ...]:
        """What must be the same for the joined weight to hold; values are its own views."""
        return tuple(
            (layer.packed, layer.bias, version(layer.bias), version(layer._buffers.get("scales")))
            for layer in self.layers
        )

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


class FusedProjections:
    """Layers that are called with the same x, one after the other: the first call runs them all."""

    def __init__(self, layers: Sequence[SparseLinear]) -> None:
        """Let `layers` ask this object on a GPU."""
        self.weights = FusedWeights(layers)
        # x, how often it was written to, where it lies, and what is left of its results: one attribute,
        # so that threads never see half of it.
        self._ready: tuple[Any, int, int, dict[int, Tensor]] | None = None
        self._unread = 0
        for layer in layers:
            layer.fused = self

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nothing: copies of the layers run one by one until they are joined anew."""

    def reset(self) -> None:
        """Let go of weights and results."""
        self._ready = None
        self.weights.reset()

    def run(self, layer: SparseLinear, x: Tensor) -> Tensor | None:
        """y of one layer; None if it has to run alone.

        Of tensors that were made in inference mode nothing tells whether they were written to: there x
        must not be changed between the calls of the layers.
        """
        ready = self._ready
        if ready is not None and ready[0]() is x and ready[1:3] == (version(x), x.data_ptr()):
            y = ready[3].pop(id(layer), None)
            if y is not None:
                return y
        joined = self.weights.whole() if self._unread < MAX_UNREAD else None
        if joined is None:
            return None
        # Where layers are not called with the same x, joining them is work for nothing.
        self._unread = self._unread + 1 if ready is not None and ready[3] else 0
        y = run_linear(joined[0], x, joined[1], "none", None)
        parts = y.split([one.out_features for one in self.weights.layers], -1)
        results = {id(one): p for one, p in zip(self.weights.layers, parts, strict=True)}
        mine = results.pop(id(layer))
        self._ready = (weakref.ref(x), version(x), x.data_ptr(), results)
        return mine


class SparseGatedMLP(Proxy):
    """Stands in for a feed-forward module, down(act(gate(x)) * up(x)), and holds its submodules.

    On a GPU gate and up are one launch with the product in its epilogue; elsewhere, and where torch
    traces, the original runs.
    """

    def __init__(self, original: nn.Module, gate: str, up: str, down: str, activation: str) -> None:
        """gate, up, down: names of submodules; activation: as `se.ops.linear` has it."""
        super().__init__(original)
        self.names, self.activation = (gate, up, down), activation
        # Modules that the epilogue stands for.
        self.others = {n: m for n, m in self._modules.items() if n not in self.names}
        self._fused: FusedWeights | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fused": None}

    def forward(self, x: Tensor) -> Tensor:
        """y [..., hidden] of x [..., hidden]."""
        joined = self._weights() if is_plain(x) else None
        if joined is None or x.device != joined[0].device:
            return self.original(x)
        check_linear(x, joined[0].shape, None, None, CUDA.input_dtypes)
        inner = run_linear(joined[0], x, joined[1], self.activation, None)
        down: Any = self.get_submodule(self.names[2])
        if not isinstance(down, SparseLinear) and down.weight.is_floating_point():
            inner = inner.to(down.weight.dtype)  # T5 keeps it in float32
        return down(inner)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._fused = None
        return super()._apply(fn, recurse)

    def _weights(self) -> tuple[Blocks, Tensor | None] | None:
        gate, up = (self.get_submodule(name) for name in self.names[:2])
        fit = isinstance(gate, SparseLinear) and isinstance(up, SparseLinear)
        if self.training or not fit or not isinstance(gate.packed, Blocks):
            return None
        if any(self._modules.get(name) is not module for name, module in self.others.items()):
            return None
        if HookWatch((self.original, *self.original.children())).changed():
            return None
        if self._fused is None or self._fused.layers != (gate, up):
            self._fused = FusedWeights((gate, up), gated=True)  # type: ignore[arg-type]
        return self._fused.whole()
