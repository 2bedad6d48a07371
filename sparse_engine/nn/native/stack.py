"""NativeStack: what native encoders and decoders share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.backends import backend_of
from sparse_engine.errors import UsageError
from sparse_engine.models import LayerStack
from sparse_engine.modules.eligible import is_proxied, skip_reason_inside
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.modules.watch import (
    HookWatch,
    Watched,
    child_entries,
    is_dropping,
    tensor_entry,
)
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.native.as_built import difference_from_config
from sparse_engine.nn.native.build import StackBuilder
from sparse_engine.nn.native.proxy import Proxy

# Arguments of transformers' models that must be unset: the library has no such outputs or inputs.
UNSUPPORTED = (
    "output_attentions",
    "output_hidden_states",
    "head_mask",
    "token_type_ids",
)
# Rotary tables serve at first so many positions.
FIRST_POSITIONS = 1024


class NativeStack(Proxy):
    """A proxy of the module that runs a model's layers: the library runs them in one call.

    A call that the library cannot serve (attentions are asked for, a hook or an adapter was added
    to a layer) runs layer by layer, with a warning that gives the reason. Without a warning, so
    does everything that torch traces, and everything on a GPU.
    """

    def __init__(self, original: nn.Module, stack: LayerStack, config: Any = None) -> None:
        """Share the submodules of `original`.

        Args:
            original: the module that runs the layers.
            stack: the names of its layers and what they compute.
            config: what a module of transformers is built from; None for other modules.
        """
        super().__init__(original)
        self.stack = stack
        self.config = config
        self._builder: StackBuilder | None = None
        # The builder of a stack, the positions of its rotary tables, and the stack.
        self._built: tuple[StackBuilder, int, _core.Stack] | None = None
        self._positions = FIRST_POSITIONS
        self._reason = ""
        self._hooks: HookWatch | None = None
        self._watched: list[Watched] = []

    def __getstate__(self) -> dict[str, Any]:
        without = dict.fromkeys(("_builder", "_built", "_hooks"))
        return {**self.__dict__, **without, "_watched": []}

    def on_gpu(self, x: Tensor) -> bool:
        """Whether the layers run one by one because that is how a GPU runs them."""
        return not backend_of(x).native_layers

    def problem(self, device: torch.device, kwargs: dict[str, Any]) -> str | None:
        """Why the library cannot serve a call, or None.

        Args:
            device: where the input is.
            kwargs: the arguments of the call that have no name of their own.
        """
        if self.original.training if is_proxied(self.original) else self.training:
            return "the model is in training mode, call model.eval()"
        if not backend_of(device).native_layers:
            return f"the input is on {device}"
        for name in UNSUPPORTED:
            value = kwargs.get(name)
            if value is None and name.startswith("output_"):
                value = getattr(self.config, name, None)
            if isinstance(value, list | tuple):  # one a layer
                value = next((item for item in value if item is not None), None)
            if value is not None and value is not False:
                return f"{name} was asked for"
        if _captures_outputs():
            return "output_attentions or output_hidden_states was asked for"
        return self.changed() or self.active_dropout() or None

    def changed(self) -> str:
        """What was changed in a layer so that its modules must be called; "" for nothing."""
        self._check_modules()
        assert self._hooks is not None
        if not self._hooks.changed():
            return self._reason
        return self._difference() or "torch has forward hooks for all modules"

    def active_dropout(self) -> str:
        """Which dropout layer is in training mode though the stack is not; "" for none."""
        if self._hooks is None or not self._hooks.dropping():
            return ""
        modules = self.named_modules(prefix=self.stack.name)
        name = next((name for name, module in modules if is_dropping(module)), "a dropout layer")
        return f"{name} is in training mode, call model.eval()"

    def native(self) -> _core.Stack:
        """The library's stack, of the weights as they were at the last call of `changed`."""
        builder, built = self._builder, self._built
        if builder is None:
            builder = self._builder = StackBuilder(self, self.stack)
        positions = self.rotary_positions
        # Other threads may replace the attributes meanwhile: a stack is stored with what it is of.
        if built is None or built[0] is not builder or built[1] < positions:
            built = self._built = builder, positions, builder.build(self, positions)
        return built[2]

    @property
    def rotary_positions(self) -> int:
        """How many positions the rotary tables serve."""
        return min(self._positions, self.stack.reach) if self.stack.has_rotary else 0

    def extend_rotary(self, positions: int) -> None:
        """Let the rotary tables serve at least so many positions.

        They grow by doubling: a config may name far more positions than any call has.
        """
        if positions > self._positions:
            self._positions = max(positions, 2 * self._positions)

    def reset(self) -> None:
        """Build the native stack anew at the next call: to be called after modules were swapped."""
        self._builder = self._built = self._hooks = None

    def _check_modules(self) -> None:
        """Compare modules and weights with those of the last call; if one differs, start anew."""
        if self._hooks is None or not _core.unchanged(self._watched):
            self._builder = self._built = None
            self._watched = [*self._tensors(), *child_entries(self.modules())]
            inside = list(self.original.modules())
            originals = [m.original for m in inside if isinstance(m, Proxy)]
            self._hooks = HookWatch([*inside, *originals])
            self._reason = self._difference()

    def _difference(self) -> str:
        if self.config is None:
            return skip_reason_inside(self.original)
        return difference_from_config(self.original, self.stack, self.config)

    def _tensors(self) -> Iterator[Watched]:
        """Every tensor that the native stack was built from.

        The buffers of a packed weight are replaced together: of those, the values.
        """
        for module in self.modules():
            packed = isinstance(module, SparseLinear)
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and (not packed or name in ("values", "bias")):
                        yield tensor_entry(tensors, name)

    def weight_dtypes(self) -> set[torch.dtype]:
        """The dtypes in which the weights of all linear layers are stored."""
        return {
            module.packed.values.dtype
            if isinstance(module, SparseLinear)
            else weight_of(module).dtype
            for module in self.modules()
            if isinstance(module, SparseLinear) or is_linear(module)
        }

    def _check_positions(self, positions: Tensor) -> None:
        """Refuse positions past the last; extend the rotary tables to those that are used."""
        if not positions.numel():
            return
        first, last, reach = int(positions.min()), int(positions.max()), self.stack.reach
        if not 0 <= first <= last < reach:
            raise UsageError(
                f"position {last} is past the model's {reach} positions (max_position_embeddings)"
            )
        self.extend_rotary(last + 1)

    def _check_ids(self, ids: Tensor) -> None:
        """Refuse ids that are not in the vocabulary."""
        assert self.stack.embedding is not None
        size: Any = self.get_submodule(self.stack.embedding).num_embeddings
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise UsageError(f"token ids must be from 0 to {size - 1}")

    def _embed(self, ids: Tensor | None, embedded: Tensor | None, positions: Tensor) -> Tensor:
        """The input of the first layer [batch, seq, hidden].

        Args:
            ids: [batch, seq], or None where `embedded` is given.
            embedded: [batch, seq, hidden], embeddings of tokens.
            positions: [batch, seq], of the learned positions.

        Raises:
            UsageError: for ids that are not in the vocabulary.
        """
        stack = self.stack
        if (ids is None) == (embedded is None):
            raise UsageError("give either input_ids or inputs_embeds")
        if embedded is None:
            assert ids is not None
            assert stack.embedding is not None
            self._check_ids(ids)
            embedded = self.get_submodule(stack.embedding)(ids)
            if stack.embedding_scale != 1:
                embedded = embedded * stack.embedding_scale
        elif stack.causal and stack.embedding_scale != 1:  # Marian's encoder does not scale these
            embedded = embedded * stack.embedding_scale
        if embedded.dim() != 3 or embedded.shape[-1] != stack.hidden:
            raise UsageError(f"inputs_embeds must be [batch, seq, {stack.hidden}]")
        if stack.residual_scale != 1:
            embedded = embedded / stack.residual_scale
        if stack.positions is not None:
            weight: Any = self.get_submodule(stack.positions).weight
            embedded = embedded + F.embedding(positions + stack.position_offset, weight)
        if stack.embedding_norm is not None:
            embedded = self.get_submodule(stack.embedding_norm)(embedded)
        return embedded


def native_stacks(model: nn.Module) -> list[tuple[str, NativeStack]]:
    """The stacks that run in place of modules of `model`, with the names of these modules."""
    found: list[tuple[str, NativeStack]] = []
    for name, module in model.named_modules():
        if isinstance(module, NativeStack):
            found.append((name, module))
        elif is_proxied(module):
            found.append((name, vars(module)["forward"].__self__))
    return found


def _captures_outputs() -> bool:
    """Whether transformers collects the outputs of layers: then they must run as modules."""
    module = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(module, "_active_collector", None)
    return bool(collector is not None and collector.get())


def refuse_gradients(x: Tensor) -> None:
    """Raise UsageError where autograd would expect a graph."""
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError("native layers are inference only: call under torch.inference_mode()")
