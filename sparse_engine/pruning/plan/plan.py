"""Chooses the linear layers of a model that are pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile

from torch import Tensor, nn

from sparse_engine.convert.census import census
from sparse_engine.errors import UsageError
from sparse_engine.models import Residual, find_family
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.pruning.coupling import Coupling, couple, find_links
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.plan.rules import left_by_rule
from sparse_engine.pruning.plan.selection import IGNORED, NOT_CHOSEN, Selection
from sparse_engine.pruning.plan.stacks import find_stacks
from sparse_engine.pruning.unrolled import left_alone

Filter = Callable[[nn.Module, str], bool]

LEFT_OUT = "left out by filter_fn"


@dataclass(frozen=True)
class Layer:
    """A linear layer to prune.

    Attributes:
        name: its dotted name in the unrolled model.
        linear: the layer.
        coupling: how strongly it is connected to the layers next to it, if a criterion needs that.
    """

    name: str
    linear: nn.Module
    coupling: Coupling | None = field(default=None, compare=False)

    @property
    def weight(self) -> Tensor:
        """The weight [out, in], in the layer's own memory."""
        return weight_of(self.linear)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out_features, in_features = self.weight.shape
        return out_features, in_features


@dataclass(frozen=True)
class Plan:
    """The layers that will be pruned.

    Attributes:
        layers: in the order of `model.named_modules()`.
        stacks: by stack, the dotted names of its modules.
        residuals: the residual stream that a layer writes to, by the name of the layer.
        left: the reason of each linear layer that is not pruned, by its name.
        removed: modules of stacks that the pruned model runs without.
    """

    layers: list[Layer]
    stacks: list[list[str]]
    residuals: dict[str, Residual] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def stack_module_of(self, name: str) -> str | None:
        """The module of a stack that contains a layer; None if the layer is in no stack."""
        modules = (module for stack in self.stacks for module in stack)
        return next((module for module in modules if name.startswith(f"{module}.")), None)

    def removed_after(self, module: str) -> list[str]:
        """The removed modules of a stack between this one and the next that remains."""
        stack = next((stack for stack in self.stacks if module in stack), [module])
        following = stack[stack.index(module) + 1 :]
        return list(takewhile(lambda name: name in self.removed, following))


def make_plan(
    model: nn.Module,
    filter_fn: Filter | None = None,
    granularity: Granularity | None = None,
    selection: Selection | None = None,
) -> Plan:
    """Choose the layers to prune.

    Without a filter, and without chosen layers, all linear layers are pruned, except

    - those whose weight is also read by an embedding, and the head of a language model;
    - those whose dotted name has a part in REASONS_BY_NAME;
    - the last layer, those outside of the stacks (see `find_stacks`), and routers of experts: the
      smallest first, as long as they have at most SMALL of the multiply-adds together;
    - the output projection of an nn.MultiheadAttention that is not unrolled, because torch reads
      its weight without running the layer.

    Layers that the granularity does not fit are left in any case. A weight that several layers
    share is pruned once.

    Args:
        model: a model whose modules are unrolled.
        filter_fn: filter_fn(module, name) decides about every linear layer; it replaces the rules.
        granularity: layers that have no whole group of it are left.
        selection: chosen layers, which replace the rules too, layers to ignore, and layers with a
            granularity of their own.

    Raises:
        UsageError: if no layer is pruned, a pattern matches none, or a weight is not a plain
            floating-point parameter.
    """
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    stacks = find_stacks(model, list(linears))
    if filter_fn is not None:
        left = {n: LEFT_OUT for n, m in linears.items() if not filter_fn(m, n)}
    else:
        left = left_by_rule(model, linears, stacks)
    selection = selection or Selection()
    others = [name for name, _ in model.named_modules() if name not in linears]
    left = selection.left(list(linears), others, left)
    layers: list[Layer] = []
    seen: set[int] = set()
    unfit: dict[str, str] = {}
    for name, module in linears.items():
        if name in left or id(module.weight) in seen:
            continue
        _check_weight(name, module)
        seen.add(id(module.weight))
        layer = Layer(name, module)
        pattern = selection.granularity_of(name, granularity)
        if pattern is not None and not pattern.fits(*layer.shape):
            unfit[name] = "{} does not fit {}x{}".format(pattern, *layer.shape)
        else:
            layers.append(layer)
    if not layers:
        raise UsageError(_why_nothing(model, granularity, linears, left, unfit))
    left |= unfit
    selection.check_used([layer.name for layer in layers], left)
    return Plan(layers, stacks, _residuals(model), left)


def with_couplings(plan: Plan, model: nn.Module) -> Plan:
    """The plan with the couplings of its layers, as their weights are now.

    Layers that are not pruned count as neighbours too.
    """
    weights = {name: weight_of(m) for name, m in model.named_modules() if is_linear(m)}
    couplings = couple(weights, find_links(model))
    layers = [replace(layer, coupling=couplings.get(layer.name)) for layer in plan.layers]
    return replace(plan, layers=layers)


def _residuals(model: nn.Module) -> dict[str, Residual]:
    """Residual streams of a model of a known family, and of such models inside another model."""
    found: dict[str, Residual] = {}
    for name, module in model.named_modules():
        family = find_family(module)
        if family is None:
            continue
        prefix = f"{name}." if name else ""
        for layer, residual in family.residuals(module).items():
            prefixed = replace(residual, module=f"{prefix}{residual.module}")
            found.setdefault(f"{prefix}{layer}", prefixed)
    return found


def _why_nothing(
    model: nn.Module,
    granularity: Granularity | None,
    linears: dict[str, nn.Module],
    left: dict[str, str],
    unfit: dict[str, str],
) -> str:
    """The message for a plan without layers."""
    if not unfit:
        if any(row.sparse for row in census(model).rows):
            return "the layers of this model are sparse already: densify_ it to prune it again"
        name, reason = next(iter((left or left_alone(model)).items()), ("", ""))
        if left and all(reason in (NOT_CHOSEN, IGNORED) for reason in left.values()):
            return "every layer that could be pruned is ignored: there is no layer to prune"
        if reason == LEFT_OUT:
            return f"filter_fn leaves out every layer; it is asked about linear layers, as {name!r}"
        if reason:
            return (
                f"there is no layer to prune in this model: {name or 'it'} is left alone, {reason}"
            )
        return "there is no layer to prune in this model: none is linear, recurrent or a Conv1d"
    shapes = [Layer(name, linears[name]).shape for name in unfit]
    rows, cols = max(shapes, key=lambda shape: shape[0] * shape[1])
    return f"granularity {granularity} fits no layer; the largest is {rows}x{cols}"


def _check_weight(name: str, linear: nn.Module) -> None:
    weight: Tensor | None = linear._parameters.get("weight")
    if weight is None or not weight.is_floating_point():
        raise UsageError(
            f"{name}.weight is not a plain floating-point parameter; remove its parametrization "
            "or quantization first, or leave it out with filter_fn"
        )
    check_finite(f"{name}.weight", weight)


def check_finite(name: str, weight: Tensor) -> None:
    """Raise UsageError if a weight holds NaN or Inf."""
    if not weight.is_meta and not weight.isfinite().all():
        raise UsageError(f"{name} holds NaN or Inf; nothing was pruned")
