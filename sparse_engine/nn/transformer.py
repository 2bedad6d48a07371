"""torch.nn's Transformer layers on sparse weights; an encoder layer runs in one native call."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.backends import backend_of
from sparse_engine.models import (
    AttentionNames,
    FeedForwardNames,
    LayerGeometry,
    LayerNames,
    LayerStack,
)
from sparse_engine.modules.effective import check_plain
from sparse_engine.nn.attention import PROJECTIONS, SparseMultiheadAttention
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.native.encoder import NativeEncoder
from sparse_engine.nn.parts import ComposedModule, as_dense_linear

ATTENTION = AttentionNames(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
)
FEED_FORWARD = FeedForwardNames(up="linear1", down="linear2")


def _layer_names(norm_first: bool) -> LayerNames:
    """Names inside a torch.nn.TransformerEncoderLayer, whose options place its norms."""
    if norm_first:
        return LayerNames(
            replace(ATTENTION, input_norm="norm1"), replace(FEED_FORWARD, input_norm="norm2")
        )
    return LayerNames(replace(ATTENTION, sum_norm="norm1"), replace(FEED_FORWARD, sum_norm="norm2"))


Layer = TypeVar("Layer", bound=nn.Module)
# The submodules that the native call replaces, and the classes that each of them may have.
LINEAR, NORM, DROPOUT = (nn.Linear, SparseLinear), (nn.LayerNorm,), (nn.Dropout, nn.Identity)
REPLACED: dict[str, tuple[type[nn.Module], ...]] = {
    **dict.fromkeys(("linear1", "linear2"), LINEAR),
    **dict.fromkeys(("norm1", "norm2"), NORM),
    **dict.fromkeys(("dropout", "dropout1", "dropout2"), DROPOUT),
}
# Attribute of an encoder that would use nested tensors if its layers were dense.
DISABLED = "_nested_tensors_disabled"


class SparseTransformerEncoderLayer(ComposedModule, nn.TransformerEncoderLayer):
    """torch.nn.TransformerEncoderLayer with sparse attention and feed-forward.

    Without `src_mask` it is one native call, in which padding is not computed and becomes zeros.
    With a mask, an activation without a kernel, or a submodule of an unknown class, torch runs it
    module by module.

    >>> layer = torch.nn.TransformerEncoderLayer(512, 8, batch_first=True).eval()
    >>> SparseTransformerEncoderLayer.from_dense(layer, "csr")
    """

    @classmethod
    def unpacked(cls, layer: nn.TransformerEncoderLayer) -> Self:
        """See ComposedModule.unpacked."""
        sparse = _unpacked(cls, layer, ("self_attn",))
        sparse._encoder = None
        return sparse

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.TransformerEncoderLayer:
        """A torch.nn.TransformerEncoderLayer with the same weights, in `dtype` or their own."""
        dense = _with_dense(nn.TransformerEncoderLayer, self, ("self_attn",), dtype)
        dense.__dict__.pop("_encoder", None)
        return dense

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The layer's output, in the shape of `src`.

        Args:
            src: [seq, batch, features], batch first, or [seq, features] of one sequence.
            src_mask: between tokens, in torch's form.
            src_key_padding_mask: [batch, seq], true or -inf at padding.
            is_causal: a hint that src_mask is causal.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # one graph of single layers
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        reason = self.problem(src, src_mask, is_causal)
        if reason:
            if backend_of(src).native_layers:
                warnings.warn(f"the layer runs module by module: {reason}", stacklevel=2)
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        single = src.dim() == 2
        x = src[None] if single else src if self.self_attn.batch_first else src.transpose(0, 1)
        keep = None
        if src_key_padding_mask is not None:
            keep = (src_key_padding_mask[None] if single else src_key_padding_mask) == 0
        assert self._encoder is not None  # `problem` has made it
        y = self._encoder[1].encode(x, keep)
        return y[0] if single else y if self.self_attn.batch_first else y.transpose(0, 1)

    def problem(self, src: Tensor, src_mask: Tensor | None, is_causal: bool = False) -> str | None:
        """Why these arguments do not run as one native call, or None if they do."""
        if not isinstance(self.self_attn, SparseMultiheadAttention):
            return "it was not made by from_dense"
        if src_mask is not None or is_causal:
            return "a mask between tokens was given"
        if self.training:
            return "it is in training mode, call eval()"
        if not backend_of(src).native_layers:
            return f"the input is on {src.device}"
        if src.requires_grad and torch.is_grad_enabled():
            return "gradients are asked for"
        if self._activation() is None:
            return "its activation has no native kernel"
        reason = self._unknown_part()
        if reason:
            return reason
        encoder = self._native()
        return encoder.changed() or encoder.active_dropout() or None

    def _unknown_part(self) -> str:
        """The first submodule of a class that the native call does not replace; "" without one."""
        modules: Any = self._modules
        projections = modules["self_attn"]._modules
        for name, classes in REPLACED.items():
            if type(modules[name]) not in classes:
                return f"its {name} is a {type(modules[name]).__name__}"
        for name in PROJECTIONS:
            if type(projections[name]) not in LINEAR:
                return f"its self_attn.{name} is a {type(projections[name]).__name__}"
        return ""

    def _native(self) -> NativeEncoder:
        """The layer as a stack of one, made again when its geometry or options have changed."""
        attention: Any = self._modules["self_attn"]
        options = attention.num_heads, attention.head_dim, self._activation(), self.norm_first
        if self._encoder is None or self._encoder[0] != options:
            geometry = LayerGeometry(
                head_size=attention.head_dim,
                activation=str(self._activation()),
            )
            names = _layer_names(self.norm_first)
            stack = LayerStack(("layers.0",), names, (geometry,), attention.embed_dim)
            parent = nn.Module()
            parent.layers = nn.ModuleList([self])
            parent.training = False  # `eval()` would set the layer's submodules too
            # In a tuple, so that it is no submodule.
            self._encoder = (options, NativeEncoder(parent, stack))
        return self._encoder[1]

    def _activation(self) -> str | None:
        given: Any = self.activation
        if given is F.relu or isinstance(given, nn.ReLU):
            return "relu"
        if given is F.gelu or (isinstance(given, nn.GELU) and given.approximate == "none"):
            return "gelu"
        return None

    _encoder: tuple[tuple[Any, ...], NativeEncoder] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}


class SparseTransformerDecoderLayer(ComposedModule, nn.TransformerDecoderLayer):
    """torch.nn.TransformerDecoderLayer with sparse attention and feed-forward, module by module."""

    @classmethod
    def unpacked(cls, layer: nn.TransformerDecoderLayer) -> Self:
        """See ComposedModule.unpacked."""
        return _unpacked(cls, layer, ("self_attn", "multihead_attn"))

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.TransformerDecoderLayer:
        """A torch.nn.TransformerDecoderLayer with the same weights, in `dtype` or their own."""
        attentions = ("self_attn", "multihead_attn")
        return _with_dense(nn.TransformerDecoderLayer, self, attentions, dtype)


def _with_modules_of(cls: type[Layer], layer: nn.Module) -> Layer:
    """A module of class `cls` with the attributes and submodules of `layer`.

    Its own submodules can be replaced without changing `layer`.
    """
    made = cls.__new__(cls)
    made.__dict__.update(layer.__dict__)
    made._modules = dict(layer._modules)
    return made


def _unpacked(cls: type[Layer], layer: nn.Module, attentions: tuple[str, ...]) -> Layer:
    check_plain(layer)
    sparse = _with_modules_of(cls, layer)
    for name in attentions:
        setattr(sparse, name, SparseMultiheadAttention.unpacked(getattr(layer, name)))
    return sparse


def _with_dense(
    cls: type[Layer], layer: nn.Module, attentions: tuple[str, ...], dtype: torch.dtype | None
) -> Layer:
    dense = _with_modules_of(cls, layer)
    for name in attentions:
        setattr(dense, name, getattr(layer, name).to_dense(dtype))
    for name in ("linear1", "linear2"):
        setattr(dense, name, as_dense_linear(getattr(layer, name), dtype))
    return dense


def disable_nested_tensors_(model: nn.Module) -> None:
    """Let every torch.nn.TransformerEncoder with sparse layers pass padding on as a mask.

    By default torch removes padding by nested tensors, for kernels that read dense weights.
    """
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder):
            continue
        sparse = any(isinstance(inner, SparseLinear) for inner in module.modules())
        if sparse and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            module.__dict__[DISABLED] = True


def restore_nested_tensors_(model: nn.Module) -> None:
    """Undo `disable_nested_tensors_`."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and module.__dict__.pop(DISABLED, False):
            module.use_nested_tensor = True
