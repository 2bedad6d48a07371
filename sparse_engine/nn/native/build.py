"""The library's view of a stack: typed layers of `_core`, built from a model's modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sparse_engine import _core
from sparse_engine.models import AttentionNames, FeedForwardNames, LayerGeometry, LayerStack
from sparse_engine.modules.linears import weight_of
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.ops import weight_handle
from sparse_engine.packings import Runs
from sparse_engine.packings.cpu.purposes import for_panels, for_rows

LINEARS = ("query", "key", "value", "output", "gate", "up", "down")
Parts = dict[str, Any]  # arguments of `_core.Attention` or `_core.FeedForward`, by name


@dataclass(frozen=True)
class LayerParts:
    """The packed weights and norms of one layer."""

    attention: Parts
    feed_forward: Parts
    cross_attention: Parts | None


class StackBuilder:
    """Packs the weights of a stack once, and builds `_core.Stack` objects that share them.

    Only the rotary tables depend on how many positions are needed, so a stack for more positions
    is cheap.
    """

    def __init__(self, module: nn.Module, stack: LayerStack) -> None:
        """Pack the weights of `module`, below which are the layers that `stack` names."""
        self._stack = stack
        self._layers = [
            self._pack_layer(module.get_submodule(name), geometry.head_size)
            for name, geometry in zip(stack.local_layers, stack.geometry, strict=True)
        ]
        final = stack.final_norm
        self._final_norm = None if final is None else norm(module.get_submodule(final))
        makers = {g.position_bias for g in stack.geometry if g.position_bias is not None}
        self._biases = {
            make: _core.PositionBias(floats(make(module, stack.reach))) for make in makers
        }

    def build(self, module: nn.Module, positions: int) -> _core.Stack:
        """The native stack of `module`, with rotary tables for so many positions."""
        makers = {g.rotary for g in self._stack.geometry if g.rotary is not None}
        tables = {make: _core.RotaryTable(*map(floats, make(module, positions))) for make in makers}
        layers = [
            self._layer(parts, geometry, tables)
            for parts, geometry in zip(self._layers, self._stack.geometry, strict=True)
        ]
        return _core.Stack(self._stack.hidden, layers, self._final_norm)

    def _layer(
        self, parts: LayerParts, geometry: LayerGeometry, tables: dict[Any, _core.RotaryTable]
    ) -> _core.Layer:
        sizes: Parts = {"head_size": geometry.head_size, "scale": geometry.scale}
        cross = parts.cross_attention
        return _core.Layer(
            attention=_core.Attention(
                **parts.attention,
                **sizes,
                causal=self._stack.causal,
                window=geometry.window,
                rotary=None if geometry.rotary is None else tables[geometry.rotary],
                position_bias=None
                if geometry.position_bias is None
                else self._biases[geometry.position_bias],
            ),
            feed_forward=_core.FeedForward(**parts.feed_forward, activation=geometry.activation),
            cross_attention=None if cross is None else _core.Attention(**cross, **sizes),
        )

    def _pack_layer(self, layer: nn.Module, head_size: int) -> LayerParts:
        names, rows = self._stack.names, self._stack.causal
        cross = None
        if names.cross_attention is not None:
            cross = _attention(layer, names.cross_attention, head_size, rows, memory=True)
        return LayerParts(
            _attention(layer, names.attention, head_size, rows),
            _parts(layer, names.feed_forward, rows),
            cross,
        )


def _attention(
    layer: nn.Module, names: AttentionNames, head_size: int, rows: bool, memory: bool = False
) -> Parts:
    """The parts of an attention, and the numbers of heads that its weights have.

    memory: keys and values are those of an encoder's states, which are never a few rows.
    """
    parts = _parts(layer, names, rows, panels_only=("key", "value") if memory else ())
    query = parts["query"].out_features
    if names.key is None:
        heads = key_heads = query // (3 * head_size)
    else:
        heads, key_heads = query // head_size, parts["key"].out_features // head_size
    return parts | {"heads": heads, "key_heads": key_heads}


def _parts(
    layer: nn.Module,
    names: AttentionNames | FeedForwardNames,
    rows: bool,
    panels_only: tuple[str, ...] = (),
) -> Parts:
    """The linear layers and norms that `names` has, by role."""
    parts: Parts = {}
    for role, name in vars(names).items():
        if name is None:
            continue
        module = layer.get_submodule(name)
        if role in LINEARS:
            parts[role] = linear_pair(module, rows and role not in panels_only)
        else:
            parts[role] = norm(module)
    return parts


def linear_pair(layer: nn.Module, rows: bool) -> _core.LinearPair:
    """A weight as panels are multiplied with it, and with `rows` also as a few rows are.

    Many tokens of a prompt and the single tokens after it need different packings.
    """
    if isinstance(layer, SparseLinear):
        packed = layer.packed
    else:
        packed = Runs.from_dense(weight_of(layer).detach().contiguous())
    bias: Any = layer.bias
    return _core.LinearPair(
        panels=weight_handle(for_panels(packed)),
        rows=weight_handle(for_rows(packed)) if rows else None,
        bias=None if bias is None else floats(bias),
    )


def norm(module: nn.Module) -> _core.Norm:
    """A LayerNorm of torch, or an RMSNorm of a family's own class."""
    if isinstance(module, nn.LayerNorm):
        gamma, beta = (None if t is None else floats(t) for t in (module.weight, module.bias))
        return _core.Norm(gamma=gamma, beta=beta, epsilon=module.eps)
    epsilon: Any = module.variance_epsilon
    return _core.Norm(gamma=floats(module.weight), epsilon=float(epsilon), rms=True)


def floats(tensor: Any) -> Any:
    """A numpy array of float32."""
    return tensor.detach().float().contiguous().numpy()
