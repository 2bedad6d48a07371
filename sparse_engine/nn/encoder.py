"""NativeEncoder: a stack of encoder layers of a known family, run by the library in one call."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine import _core
from sparse_engine.errors import UsageError
from sparse_engine.models import EncoderLayer, EncoderStack
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.ops import weight_handle
from sparse_engine.ops.reference import ACTIVATIONS
from sparse_engine.packings import QuadRuns, Runs, Strips

# Arguments of transformers' encoders that change nothing when they are unset.
UNSUPPORTED = (
    "output_attentions",
    "output_hidden_states",
    "encoder_hidden_states",
    "cache",
    "past_key_values",
    "use_cache",
)


class NativeEncoder(nn.Module):
    """Stands in for the module that runs a model's encoder layers, and holds the same submodules.

    Activations stay in panels of tokens from the first layer to the last; tokens that the mask hides
    are left out, and come back as zeros. What the library cannot do (attentions asked for) runs
    layer by layer, with a warning that says why; so does what torch traces, without one.
    """

    def __init__(self, original: nn.Module, stack: EncoderStack) -> None:
        """Take over the submodules of `original`, whose layers lie where `stack` says."""
        super().__init__()
        self._modules = original._modules  # shared: a swap below either is seen by both
        self.stack = stack
        self.config = getattr(original, "config", None)
        self._original = (original,)  # in a tuple, so that it is no submodule
        self._native: _core.Encoder | None = None
        self._watched: list[tuple[dict[str, Any], str, int]] = []
        self.train(original.training)

    @property
    def original(self) -> nn.Module:
        """The module that this one stands for."""
        return self._original[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None, "_watched": []}

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """What the original returns, without attentions or states in between.

        hidden_states: [batch, seq, hidden]; attention_mask: [batch, seq] or [batch, 1, seq or 1, seq],
        boolean or additive, the same for every query. Raises UsageError for a sequence that is
        masked as a whole, or if gradients are asked for.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # one graph of single layers
            return self.original(hidden_states, attention_mask=attention_mask, **kwargs)
        reason = self.problem(hidden_states, kwargs)
        if reason:
            warnings.warn(f"encoder layers run one by one: {reason}", stacklevel=2)
            return self.original(hidden_states, attention_mask=attention_mask, **kwargs)
        keep = None if attention_mask is None else key_mask(attention_mask)
        y = self.encode(hidden_states, keep)
        if kwargs.get("return_dict") is False:
            return (y,)
        from transformers import modeling_outputs

        return modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=y)

    def problem(self, x: Tensor, kwargs: dict[str, Any]) -> str | None:
        """Why the native call cannot serve this one, or None."""
        if x.device.type != "cpu":
            return f"the input is on {x.device}"
        for name in UNSUPPORTED:
            if kwargs.get(name) is not None and kwargs[name] is not False:
                return f"{name} was asked for"
        if _captured():
            return "output_attentions or output_hidden_states was asked for"
        return None

    def encode(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [batch, seq, hidden] through all layers; `keep` [batch, seq] says which tokens exist."""
        if x.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                "native encoders are inference only: call under torch.inference_mode()"
            )
        if x.dim() != 3 or x.shape[-1] != self.stack.hidden:
            raise UsageError(f"x is {list(x.shape)}, expected [batch, seq, {self.stack.hidden}]")
        batch, seq, hidden = x.shape
        rows = x.detach().float().reshape(-1, hidden)
        if keep is None or bool(keep.all()):
            lengths, index = [seq] * batch, None
        else:
            if tuple(keep.shape) != (batch, seq):
                raise UsageError(f"the mask is {list(keep.shape)}, expected {[batch, seq]}")
            lengths = keep.sum(1).tolist()
            if 0 in lengths:
                raise UsageError(f"sequence {lengths.index(0)} is masked as a whole")
            index = keep.reshape(-1).nonzero().squeeze(1)
            first, last = keep.int().argmax(1), seq - 1 - keep.flip(1).int().argmax(1)
            if self.stack.position_bias and (last - first + 1).tolist() != lengths:
                raise UsageError("a mask with holes does not fit relative positions")
            rows = rows[index]
        if self.stack.position_bias and max(lengths, default=0) > self.stack.reach:
            raise UsageError(f"a sequence is longer than {self.stack.reach} positions")
        rows = rows.contiguous()
        y = torch.empty_like(rows)
        self.native().encode(rows.numpy(), lengths, y.numpy())
        if index is not None:
            y = y.new_zeros(batch * seq, hidden).index_copy_(0, index, y)
        return y.to(x.dtype).view(batch, seq, hidden)

    def native(self) -> _core.Encoder:
        """The library's view of the layers, made anew when a weight has moved."""
        moved = any(_place(tensors, name) != place for tensors, name, place in self._watched)
        if self._native is None or moved:
            self._watched = [
                (tensors, name, _place(tensors, name))
                for module in self.modules()
                for tensors in (module._parameters, module._buffers)
                for name in tensors
            ]
            self._native = self._build()
        return self._native

    def forget(self) -> None:
        """Look at the layers anew at the next call: to be called after modules were swapped."""
        self._native = None

    def _build(self) -> _core.Encoder:
        stack = self.stack
        bias = None
        if stack.position_bias is not None:
            bias = stack.position_bias(self.original, stack.reach).float().contiguous().numpy()
        head = stack.hidden // stack.heads
        config = {
            "hidden": stack.hidden,
            "heads": stack.heads,
            "key_heads": stack.heads,
            "head": head,
            "inner": stack.inner,
            "activation": ACTIVATIONS_CODE[stack.activation],
            "norm_first": stack.norm_first,
            "causal": False,
            "window": 0,
            "scale": head**-0.5,
            "bias": bias,
        }
        return _core.Encoder(config, [self._layer(layer) for layer in stack.layers])

    def _layer(self, layer: EncoderLayer) -> dict[str, Any]:
        roles = ("query", "key", "value", "output", "up", "down")
        linears = {role: _linear(self.get_submodule(getattr(layer, role))) for role in roles}
        gate = None if layer.gate is None else _linear(self.get_submodule(layer.gate))
        norms = {
            name: _norm(self.get_submodule(getattr(layer, name))) for name in ("norm1", "norm2")
        }
        return {**linears, "gate": gate, **norms}


ACTIVATIONS_CODE = {name: code for code, name in enumerate(ACTIVATIONS)}


def key_mask(mask: Tensor) -> Tensor:
    """Which keys a mask [batch, seq] or [batch, 1, queries, seq] shows: boolean [batch, seq]."""
    seen = (
        mask if mask.dtype == torch.bool else mask == 0 if mask.is_floating_point() else mask != 0
    )
    if seen.dim() == 2:
        return seen
    if (
        seen.dim() != 4
        or seen.shape[1] != 1
        or not torch.equal(seen, seen[:, :, :1].expand_as(seen))
    ):
        raise UsageError("attention_mask must hide the same keys from every query and head")
    return seen[:, 0, 0]


def _linear(layer: nn.Module) -> tuple[_core.Weight, Any]:
    """The weight as panels are multiplied with it, and its bias."""
    if isinstance(layer, SparseLinear):
        packed = layer.packed
        if not isinstance(packed, Runs | Strips):  # QuadRuns are Runs
            cls = QuadRuns if packed.values.dtype == torch.int8 else Runs
            packed = cls.from_dense(packed.to_dense())
    else:
        assert isinstance(layer, nn.Linear)
        packed = Runs.from_dense(layer.weight.detach())
    bias = layer.bias
    return weight_handle(packed), None if bias is None else _floats(bias)


def _norm(norm: nn.Module) -> tuple[Any, Any, float, bool]:
    assert isinstance(norm, nn.LayerNorm)
    gamma, beta = (None if t is None else _floats(t) for t in (norm.weight, norm.bias))
    return gamma, beta, norm.eps, False


def _floats(tensor: Tensor) -> Any:
    return tensor.detach().float().contiguous().numpy()


def _place(tensors: dict[str, Any], name: str) -> int:
    tensor = tensors.get(name)
    return 0 if tensor is None else tensor.data_ptr()


def _captured() -> bool:
    """Whether transformers collects what layers give out: then they must run as modules."""
    module = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(module, "_active_collector", None)
    return bool(collector is not None and collector.get())
