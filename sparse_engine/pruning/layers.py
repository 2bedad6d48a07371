"""Which linear layers of a model are pruned, and in which blocks they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.linears import is_linear, weight_of
from sparse_engine.models import Residual, find_family
from sparse_engine.pruning.unrolled import is_network, kind_of

Filter = Callable[[nn.Module, str], bool]

# Parts of a dotted name that mean: this turns hidden states into an answer, or ids into states.
LEFT_ALONE = frozenset(
    (
        *("classifier", "pooler", "lm_head", "score", "qa_outputs", "softmax"),
        *("embedding", "embeddings"),
    )
)


@dataclass(frozen=True)
class Layer:
    """A linear layer to prune."""

    name: str
    linear: nn.Module

    @property
    def weight(self) -> Tensor:
        """[out, in]; writing to it changes the layer."""
        return weight_of(self.linear)

    @property
    def shape(self) -> tuple[int, int]:
        out, inner = self.weight.shape
        return out, inner


@dataclass(frozen=True)
class Plan:
    """What will be pruned: layers, the blocks that hold them, and residual streams by layer."""

    layers: list[Layer]
    blocks: list[str]
    residuals: dict[str, Residual] = field(default_factory=dict)


def make_plan(model: nn.Module, filter_fn: Filter | None = None) -> Plan:
    """Choose the layers: `filter_fn(module, name)` decides on every nn.Linear of the model.

    Without a filter: the linear layers inside the model's blocks (in all of the model if it has no
    blocks), except those with a part of LEFT_ALONE in their name and the output projection of an
    nn.MultiheadAttention that is not unrolled: torch reads its weight without running the layer. A weight that
    several layers share is pruned once.

    Raises UsageError if nothing is left, or a weight is not a plain floating-point parameter.
    """
    family = find_family(model)
    chosen = filter_fn or _default_filter(model, family.blocks(model) if family else None)
    layers: list[Layer] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        if is_linear(module) and chosen(module, name):
            if id(module.weight) in seen:
                continue
            _check_weight(name, module)
            seen.add(id(module.weight))
            layers.append(Layer(name, module))
    if not layers:
        raise UsageError("there is no nn.Linear to prune in this model; check filter_fn")
    if family is not None:
        return Plan(layers, family.blocks(model), family.residuals(model))
    return Plan(layers, _generic_blocks(model, [layer.name for layer in layers]))


def _check_weight(name: str, linear: nn.Module) -> None:
    weight: Tensor | None = linear._parameters.get("weight")
    if weight is None or not weight.is_floating_point():
        raise UsageError(
            f"{name}.weight is not a plain floating-point parameter; remove its parametrization "
            "or quantization first, or leave it out with filter_fn"
        )
    if not weight.isfinite().all():
        raise UsageError(f"{name}.weight holds NaN or Inf; nothing was pruned")


def _default_filter(model: nn.Module, blocks: list[str] | None) -> Filter:
    modules = dict(model.named_modules())
    linears = [name for name, module in modules.items() if is_linear(module)]
    if blocks is None:
        blocks = _generic_blocks(model, linears)

    def chosen(module: nn.Module, name: str) -> bool:
        if LEFT_ALONE.intersection(name.split(".")):
            return False
        parent = modules[name.rpartition(".")[0]]
        if isinstance(parent, nn.MultiheadAttention) and kind_of(parent) is None:
            return False
        return not blocks or any(name.startswith(f"{block}.") or name == block for block in blocks)

    return chosen


def _generic_blocks(model: nn.Module, linears: list[str]) -> list[str]:
    """Children of the outermost nn.ModuleList that holds the most linear layers; [] without one, and
    where recurrent networks are what the model is made of.
    """
    if any(is_network(module) for module in model.modules()):
        return []
    best: list[str] = []
    most = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        held = sum(linear.startswith(f"{name}." if name else "") for linear in linears)
        if held > most:
            most = held
            best = [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
    return best
