"""The library's view of a stack: typed layers of `_core`, built from a model's modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparse_engine import _core
from sparse_engine.backends.cpu_table import has_tiles
from sparse_engine.models import AttentionNames, FeedForwardNames, LayerGeometry, LayerStack
from sparse_engine.modules.linears import weight_of
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.ops import weight_handle
from sparse_engine.packings import PackedTiles, Runs
from sparse_engine.packings.cpu.purposes import for_layers, for_rows

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
            self._pack_layer(module.get_submodule(name), geometry)
            for name, geometry in zip(stack.local_layers, stack.geometry, strict=True)
        ]
        final = stack.final_norm
        self._final_norm = None if final is None else self._norm(module.get_submodule(final))
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
                soft_cap=geometry.soft_cap,
                causal=self._stack.causal,
                window=geometry.window,
                rotary=None if geometry.rotary is None else tables[geometry.rotary],
                position_bias=None
                if geometry.position_bias is None
                else self._biases[geometry.position_bias],
            ),
            feed_forward=_core.FeedForward(**parts.feed_forward, activation=geometry.activation),
            cross_attention=None if cross is None else _core.Attention(**cross, **sizes),
            parallel=self._stack.names.parallel,
        )

    def _pack_layer(self, layer: nn.Module, geometry: LayerGeometry) -> LayerParts:
        names = self._stack.names
        cross = None
        if names.cross_attention is not None:
            cross = self._attention(layer, names.cross_attention, geometry, memory=True)
        return LayerParts(
            self._attention(layer, names.attention, geometry),
            self._parts(layer, names.feed_forward),
            cross,
        )

    def _attention(
        self, layer: nn.Module, names: AttentionNames, geometry: LayerGeometry, memory: bool = False
    ) -> Parts:
        """The parts of an attention, and the numbers of heads that its weights have.

        memory: keys and values are those of an encoder's states, which are never a few rows.
        """
        parts = self._parts(layer, names, panels_only=("key", "value") if memory else ())
        rows, size = parts["query"].out_features, geometry.head_size
        if names.key is None:
            key_heads = rows // ((geometry.group + 2) * size)
            heads = key_heads * geometry.group
        else:
            heads, key_heads = rows // size, parts["key"].out_features // size
        return parts | {"heads": heads, "key_heads": key_heads}

    def _parts(
        self,
        layer: nn.Module,
        names: AttentionNames | FeedForwardNames,
        panels_only: tuple[str, ...] = (),
    ) -> Parts:
        """The linear layers, norms and options that `names` has, by role."""
        parts: Parts = {}
        for role, name in vars(names).items():
            if isinstance(name, bool):
                parts[role] = name
            elif name is not None:
                module = layer.get_submodule(name)
                if role in LINEARS:
                    rows = self._stack.causal and role not in panels_only
                    parts[role] = linear_pair(module, rows)
                else:
                    parts[role] = self._norm(module, of_stream=role == "input_norm")
        return parts

    def _norm(self, module: nn.Module, of_stream: bool = True) -> _core.Norm | None:
        scale = self._stack.residual_scale if of_stream else 1.0
        return norm(module, self._stack.norm_offset, scale)


def linear_pair(layer: nn.Module, rows: bool) -> _core.LinearPair:
    """A weight as panels are multiplied with it, and with `rows` also as a few rows are.

    Many tokens of a prompt and the single tokens after it need different packings.
    """
    if isinstance(layer, SparseLinear):
        packed = layer.packed
    else:
        weight = weight_of(layer).detach().contiguous()
        in_tiles = weight.dtype == torch.bfloat16 and has_tiles()
        packed = (PackedTiles if in_tiles else Runs).from_dense(weight)
    bias: Any = layer.bias
    return _core.LinearPair(
        panels=weight_handle(for_layers(packed)),
        rows=weight_handle(for_rows(packed)) if rows else None,
        bias=None if bias is None else floats(bias),
    )


def norm(module: nn.Module, offset: float = 0.0, scale: float = 1.0) -> _core.Norm | None:
    """A LayerNorm of torch, or an RMSNorm of a family's own class; None for an Identity.

    Args:
        module: the norm.
        offset: is added to the weights of an RMSNorm.
        scale: the input is smaller by this factor than that of `module`.
    """
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.LayerNorm):
        gamma, beta = (None if t is None else floats(t) for t in (module.weight, module.bias))
        return _core.Norm(gamma=gamma, beta=beta, epsilon=module.eps / scale**2)
    found: Any = module
    epsilon = found.variance_epsilon if hasattr(found, "variance_epsilon") else found.eps
    gamma = floats(found.weight + offset if offset else found.weight)
    return _core.Norm(gamma=gamma, epsilon=float(epsilon) / scale**2, rms=True)


def floats(tensor: Any) -> Any:
    """A numpy array of float32."""
    return tensor.detach().float().contiguous().numpy()
