"""Which modules of a model `sparsify_` replaces, and why others stay dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn

from sparse_engine.backends import backend_of
from sparse_engine.backends.semi_structured import is_compressed
from sparse_engine.convert.kinds import EXPERTS, Kind, base_kind_of, kind_of
from sparse_engine.modules.eligible import skip_reason, skip_reason_inside
from sparse_engine.modules.linears import is_conv1d, is_linear
from sparse_engine.modules.names import prefixes
from sparse_engine.modules.readable import directly_read

FilterFn = Callable[[nn.Module, str], bool]
FILTERED = "left out by filter_fn"
# Convolutions with narrower groups stay dense: a product for each costs more than its zeros save.
MIN_GROUP = 8


@dataclass(frozen=True)
class Target:
    """A module that is replaced, or stays dense for a reason.

    Attributes:
        name: its name in the model.
        module: the module.
        kind: its kind; None for a linear layer.
    """

    name: str
    module: Any
    kind: Kind | None

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for targets that share one sparse module."""
        if self.kind is not None:
            return (id(self.module),)
        return id(self.module.weight), id(self.module.bias)


@dataclass
class Targets:
    """The targets in a model, and what decides whether each stays dense.

    Attributes:
        found: in the order of `model.named_modules()`. A module with two names comes twice, and
            what is inside a target does not come again.
        opened: containers whose parts are targets of their own: name -> why.
        shared: id of a weight that other modules read too -> why its layer stays dense.
        filter_fn: filter_fn(module, name) picks modules; None picks all.
    """

    found: list[Target]
    opened: dict[str, str]
    shared: dict[int, str]
    filter_fn: FilterFn | None = field(repr=False, default=None)

    @classmethod
    def of(cls, model: nn.Module, filter_fn: FilterFn | None = None) -> Self:
        """Those in `model`."""
        targets = cls([], {}, _shared_weights(model), filter_fn)
        inside: set[str] = set()
        for name, module in model.named_modules(remove_duplicate=False):
            if not inside.isdisjoint(prefixes(name)):
                continue
            kind = kind_of(module) or base_kind_of(module)
            if kind is not None and kind.is_container:
                picked = bool(name) and not targets.is_filtered(module, name)
                reason = _container_reason(module, kind)
                if picked and reason and type(module) is not kind.sparse:
                    targets.opened[name] = f"its parts are replaced one by one: {reason}"
                if not picked or reason:
                    continue
            if kind is not None:
                inside.add(name)
                targets.found.append(Target(name, module, kind))
            elif is_linear(module):
                targets.found.append(Target(name, module, None))
        return targets

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters of all targets; those that are shared count once."""
        parameters = {p for target in self.found for p in target.module.parameters()}
        return sum(p.nbytes for p in parameters)

    def is_filtered(self, module: nn.Module, name: str) -> bool:
        """Whether `filter_fn` leaves a module out."""
        return self.filter_fn is not None and not self.filter_fn(module, name)

    def skip_reason(self, target: Target) -> str:
        """Why a target stays dense; "" if it may be replaced."""
        module, kind = target.module, target.kind
        if self.is_filtered(module, target.name):
            return FILTERED
        if kind is None:
            reason = skip_reason(module, type(module) if is_conv1d(module) else nn.Linear)
            weights = [module.weight]
        else:
            reason = skip_reason(module) if kind is EXPERTS else skip_reason(module, kind.dense)
            reason = reason or next(filter(None, map(skip_reason, module.children())), "")
            weights = [p for p in module.parameters() if p.dim() > 1]
        return reason or _weights_reason(weights) or self._shared(weights[0]) or _groups(module)

    def part_skip_reason(self, target: Target, part: str, linear: nn.Linear) -> str:
        """Why a linear layer of a target's sparse counterpart stays dense; "" if it is packed.

        Args:
            target: a target that is replaced.
            part: the layer's name below it.
            linear: the layer, whose weight is a view of the target's.
        """
        if target.kind is None or not target.kind.is_container:
            return ""
        child = part.split(".")[0]  # an attention, or a linear layer of the module's own
        if self.is_filtered(target.module.get_submodule(child), f"{target.name}.{child}"):
            return FILTERED
        return self._shared(linear.weight)

    def _shared(self, weight: Tensor) -> str:
        return self.shared.get(id(weight), "")


def _container_reason(module: nn.Module, kind: Kind) -> str:
    """Why a container is not replaced as a whole; "" if it is."""
    if type(module) is not kind.dense:
        return skip_reason(module, kind.dense)
    return skip_reason_inside(module)


def _weights_reason(weights: list[Tensor]) -> str:
    allowed = backend_of(weights[0]).input_dtypes
    other = next((weight.dtype for weight in weights if weight.dtype not in allowed), None)
    if other is not None:
        return f"is {other}: cast the model to float32 or bfloat16 first"
    return "runs torch's 2:4 kernels already" if is_compressed(weights[0]) else ""


def _groups(module: nn.Module) -> str:
    """Why a convolution in groups stays dense; "" if its groups are wide enough."""
    if isinstance(module, nn.Conv1d) and module.groups > 1:
        width = module.out_channels // module.groups
        if width < MIN_GROUP:
            return f"{module.groups} groups of {width} channels, no gain below {MIN_GROUP}"
    return ""


def _shared_weights(model: nn.Module) -> dict[int, str]:
    """id of a weight that other modules read too -> why its layer stays dense."""
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) and isinstance(weight, Tensor):
            found[id(weight)] = f"tied to {name}"
    for name, reason in directly_read(model).items():
        found[id(model.get_submodule(name).weight)] = reason
    return found
