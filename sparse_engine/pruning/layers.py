"""Which linear layers of a model are pruned, in which stacks they lie, and which are left and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from sparse_engine.convert.census import EMBEDDINGS, census
from sparse_engine.errors import UsageError
from sparse_engine.models import Residual, find_family
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.modules.readable import directly_read
from sparse_engine.pruning.granularity import Granularity
from sparse_engine.pruning.unrolled import is_unrolled, left_alone

Filter = Callable[[nn.Module, str], bool]

# Parts of a dotted name that mean: this turns hidden states into an answer, or ids into states.
LEFT_ALONE = {
    **dict.fromkeys(("classifier", "lm_head", "score", "qa_outputs", "softmax"), "a head"),
    "pooler": "a pooler",
    **dict.fromkeys(("embedding", "embeddings"), "an embedding"),
}
LEFT_OUT = "left out by filter_fn"
SMALL = 0.01
"""Share of the multiply-adds that small heads and routers may have together to be left alone."""

# Why a layer is left that calibration should have shown.
IDLE = "did not run on the calibration inputs"


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
    """What will be pruned.

    stacks:     names of the blocks of each stack
    residuals:  residual streams by layer
    left:       linear layers that are left alone: name -> why
    """

    layers: list[Layer]
    stacks: list[list[str]]
    residuals: dict[str, Residual] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def block_of(self, name: str) -> str | None:
        """The block that a layer lies in."""
        blocks = (block for stack in self.stacks for block in stack)
        return next((block for block in blocks if name.startswith(f"{block}.")), None)


def make_plan(
    model: nn.Module, filter_fn: Filter | None = None, granularity: Granularity | None = None
) -> Plan:
    """Choose the layers of a model whose modules are unrolled.

    `filter_fn(module, name)` decides on every nn.Linear. Without it all are pruned but

    - those whose weight an embedding reads too, and a language model's head;
    - those with a part of LEFT_ALONE in their name;
    - the last layer, those outside of the stacks (see `find_stacks`), and routers of experts, the
      smallest first, as long as they have SMALL of the multiply-adds together;
    - the output projection of an nn.MultiheadAttention that is not unrolled: torch reads its weight
      without running the layer.

    Layers that the granularity does not fit are left in any case. A weight that several layers
    share is pruned once.

    Raises UsageError if nothing is left, or a weight is not a plain floating-point parameter.
    """
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    stacks = find_stacks(model, list(linears))
    if filter_fn is not None:
        left = {n: LEFT_OUT for n, m in linears.items() if not filter_fn(m, n)}
    else:
        left = _left_by_rule(model, linears, stacks)
    layers: list[Layer] = []
    seen: set[int] = set()
    unfit: dict[str, str] = {}
    for name, module in linears.items():
        if name in left or id(module.weight) in seen:
            continue
        _check_weight(name, module)
        seen.add(id(module.weight))
        layer = Layer(name, module)
        if granularity is not None and not granularity.fits(*layer.shape):
            unfit[name] = "{} does not fit {}x{}".format(granularity, *layer.shape)
        else:
            layers.append(layer)
    if not layers:
        raise UsageError(_nothing(model, granularity, linears, left, unfit))
    return Plan(layers, stacks, _residuals(model), left | unfit)


def _residuals(model: nn.Module) -> dict[str, Residual]:
    """Residual streams of a model of a known family, and of such models inside another."""
    found: dict[str, Residual] = {}
    for name, module in model.named_modules():
        family = find_family(module)
        if family is None:
            continue
        prefix = f"{name}." if name else ""
        for layer, residual in family.residuals(module).items():
            within = replace(residual, module=f"{prefix}{residual.module}")
            found.setdefault(f"{prefix}{layer}", within)
    return found


def _nothing(
    model: nn.Module,
    granularity: Granularity | None,
    linears: dict[str, nn.Module],
    left: dict[str, str],
    unfit: dict[str, str],
) -> str:
    if not unfit:
        if any(row.sparse for row in census(model).rows):
            return "the layers of this model are sparse already: densify_ it to prune it again"
        name, why = next(iter((left or left_alone(model)).items()), ("", ""))
        if why == LEFT_OUT:
            return f"filter_fn leaves out every layer; it is asked about linear layers, as {name!r}"
        if why:
            return f"there is no layer to prune in this model: {name or 'it'} is left alone, {why}"
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
    if not weight.isfinite().all():
        raise UsageError(f"{name}.weight holds NaN or Inf; nothing was pruned")


def reason_by_name(name: str) -> str:
    """Why a layer of this dotted name is left; "" if it is not."""
    part = next((part for part in name.split(".") if part in LEFT_ALONE), None)
    return "" if part is None else f"{LEFT_ALONE[part]} by its name"


def _left_by_rule(
    model: nn.Module, linears: dict[str, nn.Module], stacks: list[list[str]]
) -> dict[str, str]:
    modules = dict(model.named_modules())
    tables = {
        module.weight.data_ptr(): name
        for name, module in modules.items()
        if isinstance(module, EMBEDDINGS) and not module.weight.is_meta
    }
    head, read = _output_layer(model), directly_read(model)
    left: dict[str, str] = {}
    for name, linear in linears.items():
        parent = modules[name.rpartition(".")[0]]
        by_name = reason_by_name(name)
        table = tables.get(weight_of(linear).data_ptr())
        if table is not None:
            left[name] = f"tied to {table}"
        elif by_name or name in read:
            left[name] = by_name or read[name]
        elif linear is head:
            left[name] = "a head"
        elif isinstance(parent, nn.MultiheadAttention) and not is_unrolled(parent):
            left[name] = "of an attention that is left alone"
    rest = {name: linear for name, linear in linears.items() if name not in left}
    return left | _small(model, modules, rest, stacks)


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The head of a language model of transformers."""
    try:
        found = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _small(
    model: nn.Module,
    modules: dict[str, nn.Module],
    linears: dict[str, nn.Module],
    stacks: list[list[str]],
) -> dict[str, str]:
    """Heads and routers that have few of the multiply-adds: name -> why they are left."""
    if len(linears) < 2:
        return {}
    work = {row.name: row.multiply_adds for row in census(model).rows}
    candidates: dict[str, str] = {}
    inside = [f"{block}." for stack in stacks for block in stack]
    for name, linear in linears.items():
        parent = modules[name.rpartition(".")[0]]
        experts = parent._modules.get("experts")
        rows = weight_of(linear).shape[0]
        if experts is not None and rows in (1, _count(experts)):
            candidates[name] = "a router"
        elif stacks and not _name_in(name, inside):
            candidates[name] = "outside of the stacks"
    last = list(linears)[-1]
    if not _name_in(last, inside):
        candidates[last] = "the last layer"
    total = sum(work[name] for name in linears)
    left: dict[str, str] = {}
    spent = 0
    for name in sorted(candidates, key=lambda name: work[name]):
        spent += work[name]
        if spent > SMALL * total:
            break
        left[name] = f"{candidates[name]}, {work[name] / total:.1%} of multiply-adds"
    return left


def _count(experts: nn.Module) -> int:
    """How many experts a module or list of them holds."""
    return int(getattr(experts, "num_experts", 0) or len(list(experts.children())))


def _name_in(name: str, prefixes: list[str]) -> bool:
    """Whether a dotted name begins with one of these."""
    return name.startswith(tuple(prefixes))


def find_stacks(model: nn.Module, linears: list[str]) -> list[list[str]]:
    """The blocks of each stack: children that hold linear layers.

    Stacks are the outermost nn.ModuleLists, and nn.Sequentials of blocks of one class, that have
    such children; linear layers themselves are no blocks.
    """
    stacks: list[list[str]] = []
    above: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or _name_in(name, above):
            continue
        prefix = f"{name}." if name else ""
        blocks = {
            f"{prefix}{child}": type(held)
            for child, held in module.named_children()
            if any(linear.startswith(f"{prefix}{child}.") for linear in linears)
        }
        repeated = len(blocks) > 1 and len(set(blocks.values())) == 1
        if blocks and (isinstance(module, nn.ModuleList) or repeated):
            stacks.append(list(blocks))
            above += [f"{block}." for block in blocks]
    return stacks
