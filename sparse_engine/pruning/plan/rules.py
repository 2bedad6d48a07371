"""Which linear layers are left as they are when the caller gives no filter."""

from __future__ import annotations

from torch import nn

from sparse_engine.convert.census import EMBEDDINGS, census
from sparse_engine.modules.linears import weight_of
from sparse_engine.modules.readable import directly_read
from sparse_engine.pruning.plan.stacks import is_below
from sparse_engine.pruning.unrolled import is_unrolled

# Parts of a dotted name that mark modules which turn hidden states into an answer, or ids into
# hidden states.
REASONS_BY_NAME = {
    **dict.fromkeys(("classifier", "lm_head", "score", "qa_outputs", "softmax"), "a head"),
    "pooler": "a pooler",
    **dict.fromkeys(("embedding", "embeddings"), "an embedding"),
}
SMALL = 0.01
"""Share of the multiply-adds that small heads and routers may have together to be left."""

DID_NOT_RUN = "did not run on the calibration inputs"
"""The reason of a layer that calibration did not reach."""


def left_by_rule(
    model: nn.Module, linears: dict[str, nn.Module], stacks: list[list[str]]
) -> dict[str, str]:
    """Apply the default rules, which `make_plan` lists.

    Args:
        model: a model whose modules are unrolled.
        linears: its linear layers by dotted name.
        stacks: as `find_stacks` returns them.

    Returns:
        The reason of each layer that is left, by dotted name.
    """
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


def reason_by_name(name: str) -> str:
    """Why a layer of this dotted name is left; "" if it is not."""
    part = next((part for part in name.split(".") if part in REASONS_BY_NAME), None)
    return "" if part is None else f"{REASONS_BY_NAME[part]} by its name"


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
    """Heads and routers with few of the multiply-adds: the reason by dotted name."""
    if len(linears) < 2:
        return {}
    multiply_adds = {row.name: row.multiply_adds for row in census(model).rows}
    candidates: dict[str, str] = {}
    inside = [f"{module}." for stack in stacks for module in stack]
    for name, linear in linears.items():
        parent = modules[name.rpartition(".")[0]]
        experts = parent._modules.get("experts")
        rows = weight_of(linear).shape[0]
        if experts is not None and rows in (1, _number_of_experts(experts)):
            candidates[name] = "a router"
        elif stacks and not is_below(name, inside):
            candidates[name] = "outside of the stacks"
    last = list(linears)[-1]
    if not is_below(last, inside):
        candidates[last] = "the last layer"
    total = sum(multiply_adds[name] for name in linears)
    if not total:  # layers without inputs or outputs
        return {}
    left: dict[str, str] = {}
    spent = 0
    for name in sorted(candidates, key=lambda name: multiply_adds[name]):
        spent += multiply_adds[name]
        if spent > SMALL * total:
            break
        left[name] = f"{candidates[name]}, {multiply_adds[name] / total:.1%} of multiply-adds"
    return left


def _number_of_experts(experts: nn.Module) -> int:
    """The number of experts that a module or a list holds."""
    return int(getattr(experts, "num_experts", 0) or len(list(experts.children())))
