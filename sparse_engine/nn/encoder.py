"""NativeEncoder: a stack of encoder layers of a known family, run by the library in one call."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine import _core
from sparse_engine.errors import UsageError
from sparse_engine.models import EncoderStack
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.ops import weight_handle
from sparse_engine.ops.native import ACTIVATION_CODES
from sparse_engine.packings import QuadRuns, Runs, Strips

# Arguments of transformers' encoders that change nothing when they are unset.
UNSUPPORTED = (
    "output_attentions",
    "output_hidden_states",
    "encoder_hidden_states",
    "head_mask",
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
        self._watched: list[tuple[dict[str, Any], str, Tensor | None, tuple[int, int]]] = []
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
        if self.training:
            return "the model is in training mode, call model.eval()"
        if x.device.type != "cpu":
            return f"the input is on {x.device}"
        for name in UNSUPPORTED:
            given = kwargs.get(name)
            if isinstance(given, list | tuple):  # one a layer
                given = next((one for one in given if one is not None), None)
            if given is not None and given is not False:
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
        """The library's view of the layers, made anew when a weight was replaced or written to."""
        changed = any(
            tensors.get(name) is not tensor or _state(tensor) != state
            for tensors, name, tensor, state in self._watched
        )
        if self._native is None or changed:
            self._watched = [
                (tensors, name, tensors[name], _state(tensors[name]))
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
            "activation": ACTIVATION_CODES[stack.activation],
            "norm_first": stack.norm_first,
            "causal": False,
            "window": 0,
            "scale": head**-0.5,
            "bias": bias,
        }
        at = len(stack.name) + 1 if stack.name else 0
        return _core.Encoder(config, [self._layer(block[at:]) for block in stack.blocks])

    def _layer(self, block: str) -> dict[str, Any]:
        layer: dict[str, Any] = {}
        for role, name in asdict(self.stack.layer).items():
            module = None if name is None else self.get_submodule(f"{block}.{name}")
            if module is None:
                layer[role] = None
            else:
                layer[role] = _norm(module) if role.startswith("norm") else _linear(module)
        return layer


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


def _state(tensor: Tensor | None) -> tuple[int, int]:
    """Where a tensor lies, and how often it was written to; inference tensors do not count that."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _captured() -> bool:
    """Whether transformers collects what layers give out: then they must run as modules."""
    module = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(module, "_active_collector", None)
    return bool(collector is not None and collector.get())
