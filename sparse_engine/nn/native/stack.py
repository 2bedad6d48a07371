"""NativeStack: what native encoders and decoders share, a view of modules as the library wants them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.backends import backend_of
from sparse_engine.errors import UsageError
from sparse_engine.models import LayerStack
from sparse_engine.modules.as_built import difference_from_config
from sparse_engine.modules.eligible import skip_reason_inside
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.modules.watch import HookWatch, Watched, child_entries, tensor_entry
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.native.proxy import Proxy
from sparse_engine.ops import weight_handle
from sparse_engine.packings import Runs
from sparse_engine.packings.cpu.purposes import for_panels, for_rows

# Arguments of transformers' models that change nothing when they are unset.
UNSUPPORTED = (
    "output_attentions",
    "output_hidden_states",
    "head_mask",
    "token_type_ids",
)


class NativeStack(Proxy):
    """Stands in for the module that runs a model's layers, and holds the same submodules.

    What the library cannot do (attentions asked for, a hook or an adapter that was added to a layer)
    runs layer by layer, with a warning that says why; so does what torch traces, and everything on a
    GPU, without one.
    """

    def __init__(self, original: nn.Module, stack: LayerStack, config: Any = None) -> None:
        """Take over the submodules of `original`, whose layers lie where `stack` says.

        config: what a module of transformers is built from; None for other modules.
        """
        super().__init__(original)
        self.stack = stack
        self.config = config
        self._native: _core.Stack | None = None
        self._reason = ""
        self._watch: HookWatch | None = None
        # What it was made of, and for how many positions its rotary tables are.
        self._given: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
        self._turned = 1024
        self._watched: list[Watched] = []

    def __getstate__(self) -> dict[str, Any]:
        without = dict.fromkeys(("_native", "_given", "_watch"))
        return {**self.__dict__, **without, "_watched": []}

    def on_gpu(self, x: Tensor) -> bool:
        """Whether layers run one by one as they are meant to: those of torch, on sparse ones."""
        return not backend_of(x).native_layers

    def problem(self, device: torch.device, kwargs: dict[str, Any]) -> str | None:
        """Why the native call cannot serve this one, or None."""
        if self.training:
            return "the model is in training mode, call model.eval()"
        if not backend_of(device).native_layers:
            return f"the input is on {device}"
        for name in UNSUPPORTED:
            given = kwargs.get(name)
            if given is None and name.startswith("output_"):
                given = getattr(self.config, name, None)
            if isinstance(given, list | tuple):  # one a layer
                given = next((one for one in given if one is not None), None)
            if given is not None and given is not False:
                return f"{name} was asked for"
        if _captured():
            return "output_attentions or output_hidden_states was asked for"
        return self.changed() or None

    def changed(self) -> str:
        """Why layers must be called rather than read, as one of them was changed; "" if not."""
        self._look()
        assert self._watch is not None
        if not self._watch.changed():
            return self._reason
        return self._why_not() or "torch has forward hooks for all modules"

    def native(self) -> _core.Stack:
        """The library's view of the layers as they were when `changed` was last asked, which lets go
        of it when a weight was replaced or written to.
        """
        if self._native is None:
            self._native = self._build()
        return self._native

    def _look(self) -> None:
        """Look at the modules, unless they and their weights are what they were the last time."""
        if self._watch is None or not _core.unchanged(self._watched):
            self._native = None
            self._watched = [*self._to_watch(), *child_entries(self.modules())]
            inside = list(self.original.modules())
            stood_for = [m.original for m in inside if isinstance(m, Proxy)]
            self._watch = HookWatch([*inside, *stood_for])
            self._reason = self._why_not()

    def _why_not(self) -> str:
        if self.config is None:
            return skip_reason_inside(self.original)
        layers = self.stack.layers
        return difference_from_config(self.original, self.stack.name, self.config, layers)

    def _to_watch(self) -> Iterator[Watched]:
        """Every tensor that the library holds; of a packed weight, whose buffers are replaced
        together, the values.
        """
        for module in self.modules():
            packed = isinstance(module, SparseLinear)
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and (not packed or name in ("values", "bias")):
                        yield tensor_entry(tensors, name)

    def weight_dtypes(self) -> set[torch.dtype]:
        """In what the weights of all linear layers are stored."""
        return {
            module.packed.values.dtype
            if isinstance(module, SparseLinear)
            else weight_of(module).dtype
            for module in self.modules()
            if isinstance(module, SparseLinear) or is_linear(module)
        }

    def reset(self) -> None:
        """Look at the layers anew at the next call: to be called after modules were swapped."""
        self._native = self._watch = None

    def _build(self) -> _core.Stack:
        stack, bias, rotary = self.stack, None, None
        if stack.position_bias is not None:
            bias = _floats(stack.position_bias(self.original, stack.reach))
        if stack.rotary is not None:
            rotary = self._angles()
        config = {
            "hidden": stack.hidden,
            "heads": stack.heads,
            "key_heads": stack.key_heads or stack.heads,
            "head": stack.head_size,
            "inner": stack.inner,
            "activation": _core.ACTIVATIONS[stack.activation],
            "norm_first": stack.norm_first,
            "causal": stack.causal,
            "window": stack.window,
            "scale": stack.head_size**-0.5 if stack.scale is None else stack.scale,
            "bias": bias,
            "rotary": rotary,
            "last": None if stack.last is None else _norm(self.get_submodule(stack.last)),
        }
        at = len(stack.name) + 1 if stack.name else 0
        self._given = config, [self._layer(block[at:]) for block in stack.blocks]
        return _core.Stack(*self._given)

    def reach_for(self, positions: int) -> None:
        """Let the rotary tables, if there are any, serve so many positions: they grow by doubling,
        since a config may name far more positions than anyone uses.
        """
        if self.stack.rotary is None or positions <= self._turned:
            return
        self._turned = min(self.stack.reach, max(positions, 2 * self._turned))
        if self._native is not None and self._given is not None:
            config, layers = self._given
            self._given = {**config, "rotary": self._angles()}, layers
            self._native = _core.Stack(*self._given)

    def _angles(self) -> tuple[Any, Any]:
        assert self.stack.rotary is not None
        positions = min(self._turned, self.stack.reach)
        cosines, sines = self.stack.rotary(self.original, positions)
        return _floats(cosines), _floats(sines)

    def _layer(self, block: str) -> dict[str, Any]:
        layer: dict[str, Any] = {}
        for role, name in asdict(self.stack.layer).items():
            module = None if name is None else self.get_submodule(f"{block}.{name}")
            if module is None:
                layer[role] = None
            else:
                few = self.stack.causal and role not in ("cross_key", "cross_value")
                layer[role] = _norm(module) if "norm" in role else _linear(module, few)
        return layer

    def _embed(self, ids: Tensor | None, embedded: Tensor | None, positions: Tensor) -> Tensor:
        """What the first layer gets; raises UsageError for ids that are not in the vocabulary."""
        stack = self.stack
        if (ids is None) == (embedded is None):
            raise UsageError("give either input_ids or inputs_embeds")
        if embedded is None:
            assert ids is not None
            assert stack.embedding is not None
            table = self.get_submodule(stack.embedding)
            size = int(table.num_embeddings)  # type: ignore[arg-type]
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
                raise UsageError(f"token ids must be from 0 to {size - 1}")
            embedded = (
                table(ids) * stack.embedding_scale if stack.embedding_scale != 1 else table(ids)
            )
        elif stack.causal and stack.embedding_scale != 1:  # Marian's encoder takes them as they are
            embedded = embedded * stack.embedding_scale
        if embedded.dim() != 3 or embedded.shape[-1] != stack.hidden:
            raise UsageError(f"inputs_embeds must be [batch, seq, {stack.hidden}]")
        if stack.positions is not None:
            places: Any = self.get_submodule(stack.positions).weight
            embedded = embedded + F.embedding(positions, places)
        return embedded


def _linear(layer: nn.Module, few: bool) -> tuple[Any, Any, Any]:
    """The weight as panels are multiplied with it, as a `few` rows are if they ever are, the bias.

    Many tokens of a prompt and single ones afterwards need other orders.
    """
    if isinstance(layer, SparseLinear):
        held = layer.packed
    else:
        held = Runs.from_dense(weight_of(layer).detach().contiguous())
    bias: Any = layer.bias
    return (
        weight_handle(for_panels(held)),
        weight_handle(for_rows(held)) if few else None,
        None if bias is None else _floats(bias),
    )


def _norm(norm: nn.Module) -> tuple[Any, Any, float, bool]:
    """gamma, beta, epsilon, and whether the mean is left out."""
    if isinstance(norm, nn.LayerNorm):
        gamma, beta = (None if t is None else _floats(t) for t in (norm.weight, norm.bias))
        return gamma, beta, norm.eps, False
    epsilon: Any = norm.variance_epsilon  # of the families' own RMSNorm classes
    return _floats(norm.weight), None, float(epsilon), True


def _floats(tensor: Any) -> Any:
    return tensor.detach().float().contiguous().numpy()


def _captured() -> bool:
    """Whether transformers collects what layers give out: then they must run as modules."""
    module = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(module, "_active_collector", None)
    return bool(collector is not None and collector.get())


def refuse_gradients(x: Tensor) -> None:
    """Raise UsageError where autograd would expect a graph."""
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError("native layers are inference only: call under torch.inference_mode()")
