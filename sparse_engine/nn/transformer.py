"""torch.nn's Transformer layers on sparse weights; an encoder layer runs in one native call."""

from __future__ import annotations

import warnings
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.models import LayerNames, LayerStack
from sparse_engine.modules.effective import check_plain
from sparse_engine.nn.attention import SparseMultiheadAttention
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.native.encoder import NativeEncoder
from sparse_engine.nn.parts import dense_part, sparse_parts_

LAYER = LayerNames(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    up="linear1",
    down="linear2",
    norm1="norm1",
    norm2="norm2",
)
Layer = TypeVar("Layer", bound=nn.Module)
# On an encoder: torch would use nested tensors, were its layers dense.
LEFT = "_left_fast_path"


class SparseTransformerEncoderLayer(nn.TransformerEncoderLayer):
    """torch.nn.TransformerEncoderLayer with sparse attention and feed-forward.

    Without `src_mask` it runs as one native call, in which padding is not computed and comes back as
    zeros; with one, or an activation that has no kernel, torch runs it module by module.

    >>> layer = torch.nn.TransformerEncoderLayer(512, 8, batch_first=True).eval()
    >>> SparseTransformerEncoderLayer.from_dense(layer, "csr")
    """

    @classmethod
    def like(cls, layer: nn.TransformerEncoderLayer) -> Self:
        """A layer with the weights of `layer`, still dense."""
        twin = _opened(cls, layer, ("self_attn",))
        twin._encoder = None
        return twin

    @classmethod
    def from_dense(
        cls, layer: nn.TransformerEncoderLayer, config: SparseConfig | str | None = None
    ) -> Self:
        """Store the weights of `layer` as `config` says; `layer` is left as it is."""
        twin = cls.like(layer)
        sparse_parts_(twin, config)
        return twin

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
        """As torch's: [seq, batch, features], batch first, or one sequence."""
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
        y = self._native().encode(x, keep)
        return y[0] if single else y if self.self_attn.batch_first else y.transpose(0, 1)

    def problem(self, src: Tensor, src_mask: Tensor | None, is_causal: bool = False) -> str | None:
        """Why the native call cannot serve these arguments, or None."""
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
        return self._native().changed() or None

    def _native(self) -> NativeEncoder:
        """The layer as a stack of one."""
        if self._encoder is None:
            holder = nn.Module()
            holder.layers = nn.ModuleList([self])
            attention = self.self_attn
            stack = LayerStack(
                blocks=("layers.0",),
                layer=LAYER,
                hidden=attention.embed_dim,
                heads=attention.num_heads,
                inner=self.linear1.out_features,
                activation=str(self._activation()),
                norm_first=self.norm_first,
            )
            self._encoder = (NativeEncoder(holder.eval(), stack),)  # in a tuple: no submodule
        return self._encoder[0]

    def _activation(self) -> str | None:
        given: Any = self.activation
        if given is F.relu or isinstance(given, nn.ReLU):
            return "relu"
        if given is F.gelu or (isinstance(given, nn.GELU) and given.approximate == "none"):
            return "gelu"
        return None

    _encoder: tuple[NativeEncoder] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}


class SparseTransformerDecoderLayer(nn.TransformerDecoderLayer):
    """torch.nn.TransformerDecoderLayer with sparse attention and feed-forward, module by module."""

    @classmethod
    def like(cls, layer: nn.TransformerDecoderLayer) -> Self:
        """A layer with the weights of `layer`, still dense."""
        return _opened(cls, layer, ("self_attn", "multihead_attn"))

    @classmethod
    def from_dense(
        cls, layer: nn.TransformerDecoderLayer, config: SparseConfig | str | None = None
    ) -> Self:
        """Store the weights of `layer` as `config` says; `layer` is left as it is."""
        twin = cls.like(layer)
        sparse_parts_(twin, config)
        return twin

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.TransformerDecoderLayer:
        """A torch.nn.TransformerDecoderLayer with the same weights, in `dtype` or their own."""
        attentions = ("self_attn", "multihead_attn")
        return _with_dense(nn.TransformerDecoderLayer, self, attentions, dtype)


def _twin(cls: type[Layer], layer: nn.Module) -> Layer:
    """A module of class `cls` that shares what `layer` holds; its own modules may be exchanged."""
    twin = cls.__new__(cls)
    twin.__dict__.update(layer.__dict__)
    twin._modules = dict(layer._modules)
    return twin


def _opened(cls: type[Layer], layer: nn.Module, attentions: tuple[str, ...]) -> Layer:
    check_plain(layer)
    twin = _twin(cls, layer)
    for name in attentions:
        setattr(twin, name, SparseMultiheadAttention.like(getattr(layer, name)))
    return twin


def _with_dense(
    cls: type[Layer], layer: nn.Module, attentions: tuple[str, ...], dtype: torch.dtype | None
) -> Layer:
    twin = _twin(cls, layer)
    for name in attentions:
        setattr(twin, name, getattr(layer, name).to_dense(dtype))
    for name in ("linear1", "linear2"):
        setattr(twin, name, dense_part(getattr(layer, name), dtype))
    return twin


def leave_fast_path_(model: nn.Module) -> None:
    """Let every torch.nn.TransformerEncoder with sparse layers hand padding on as a mask.

    By default torch cuts the padding off into nested tensors, for kernels that read dense weights.
    """
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder):
            continue
        sparse = any(isinstance(inner, SparseLinear) for inner in module.modules())
        if sparse and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            module.__dict__[LEFT] = True


def take_fast_path_(model: nn.Module) -> None:
    """Undo `leave_fast_path_`."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and module.__dict__.pop(LEFT, False):
            module.use_nested_tensor = True
