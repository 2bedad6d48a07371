"""sparsify_: swap the layers of any model for sparse ones, and say what was done and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.backends import backend_of
from sparse_engine.backends.semi_structured import is_compressed, restored
from sparse_engine.config import SparseConfig
from sparse_engine.convert.kinds import (
    EXPERTS,
    TWINS,
    Kind,
    above,
    ancestor_of,
    kind_of,
    too_narrow,
)
from sparse_engine.convert.native import install_native, remove_native
from sparse_engine.convert.report import SparsifyReport, SparsifyRow, describe
from sparse_engine.convert.swap import Swap, replace_, swap_linear, swap_network, swap_parts
from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.eligible import skip_reason, skip_reason_inside
from sparse_engine.modules.frozen import freeze_, trainable_names, unfreeze_
from sparse_engine.modules.linears import as_conv1d, is_conv1d, is_linear
from sparse_engine.modules.readable import check_readable, directly_read
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.transformer import leave_fast_path_, take_fast_path_

# On a model that was swapped: its dtype before, if no dense parameter may tell it any more.
DENSE_DTYPE = "_dense_dtype"

FilterFn = Callable[[nn.Module, str], bool]
Progress = Callable[[int, int, str], None]


def sparsify_(
    model: nn.Module,
    config: SparseConfig | str | None = None,
    filter_fn: FilterFn | None = None,
    progress: Progress | None = None,
) -> SparsifyReport:
    """Replace every layer of `model` that has a sparse twin by it, in place; returns the report.

    These are torch.nn.Linear, Conv1d, MultiheadAttention, TransformerEncoderLayer and DecoderLayer,
    LSTM, GRU, RNN and their cells, Conv1D of GPT-2, and transformers' fused experts. What holds
    others is swapped as a whole; subclasses stay, and what they hold is looked at. Layers of known
    families (sparse_engine/models) then run natively, in one call a stack.

    `filter_fn(module, name)` picks layers; all by default. A layer stays dense, with its reason in
    the report, when it is tied to an embedding, may compute something else than its class does (a
    subclass, forward hooks), has too few zeros, or when "auto" measured that dense is faster. Weights
    that are computed before each call (masks of torch.nn.utils.prune, weight norm, spectral norm,
    parametrizations) become plain ones. Parameters take no gradients from here on; `densify_` gives
    their flags back. `progress(done, total, name)` is called after each layer. Raises UsageError when
    `model` is itself such a layer, when a weight has no values, is quantised already, or does not
    fit the format.

    >>> print(se.sparsify_(model, se.SparseConfig(format="csr")))
    """
    config = SparseConfig.of(config)
    _refuse_single(model)
    check_readable(model)
    folded, flags = fold_(model), trainable_names(model)
    dtype = _dtype_of(model)
    targets = list(_targets(model, filter_fn))
    taken = _taken_weights(model)
    # Modules that share their parameters share the sparse one; swapped in when all are made.
    made: dict[tuple[int, ...], tuple[str, Swap]] = {}
    swaps: list[tuple[str, nn.Module]] = []
    rows: list[SparsifyRow] = []
    for done, (name, module, kind) in enumerate(targets, 1):
        kept = _reason_to_keep(module, name, kind, filter_fn, taken)
        key = (id(module),) if kind else (id(module.weight), id(module.bias))
        if kept or key not in made:
            made[key] = name, _swap(module, name, kind, kept, config, filter_fn, taken)
        first, swap = made.pop(key) if kept else made[key]
        rows += [replace(row, name=name + row.name.removeprefix(first)) for row in swap.rows]
        if swap.new is not None:
            swaps.append((name, swap.new))
        if progress is not None:
            progress(done, len(targets), name)
    for name, new in swaps:
        replace_(model, name, new)
    leave_fast_path_(model)
    freeze_(model, flags)
    if dtype not in (None, torch.float32):  # sparse layers store float32 unless asked
        setattr(model, DENSE_DTYPE, dtype)
    report = describe(model, _told(rows, folded), [name for name, _, _ in targets])
    return replace(report, blocks=install_native(model))


def densify_(model: nn.Module) -> nn.Module:
    """Turn every sparse layer in `model` back into the module it stands for, in place, and every
    native stack too.

    Weights come back in the dtype of the model's other parameters; where there are none, in bfloat16
    if the model was in it when `sparsify_` was called, else as they are stored. Raises UsageError when
    `model` is itself a sparse layer.
    """
    if isinstance(model, (SparseLinear, *TWINS)):
        kind = type(model).__name__
        raise UsageError(f"the model is a single {kind}: use its to_dense()")
    remove_native(model)
    take_fast_path_(model)
    dtype = _dtype_of(model) or vars(model).get(DENSE_DTYPE)
    vars(model).pop(DENSE_DTYPE, None)
    dense: dict[int, nn.Module] = {}  # one for all names of a layer
    inside: set[str] = set()  # twins, whose parts come back with them
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not inside.isdisjoint(above(name)):
            continue
        if isinstance(module, TWINS):
            inside.add(name)
            new = dense.get(id(module)) or module.to_dense(dtype)
        elif isinstance(module, SparseLinear):
            new = dense.get(id(module)) or module.to_dense(dtype)
            new = as_conv1d(new) if module.is_conv1d and isinstance(new, nn.Linear) else new
        elif isinstance(module, nn.Linear) and is_compressed(module.weight):
            new = restored(module)
        else:
            continue
        dense[id(module)] = new
        replace_(model, name, new)
    unfreeze_(model)
    return model


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    """That of the first parameter, None where there is none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _told(rows: list[SparsifyRow], folded: dict[str, str]) -> tuple[SparsifyRow, ...]:
    """Rows whose reasons say what was folded into their weights; parts of a module have its name."""
    owners = [(row, next((f for f in folded if f in above(row.name)), None)) for row in rows]
    return tuple(
        replace(row, reason=f"{row.reason}; {folded[owner]}") if owner is not None else row
        for row, owner in owners
    )


def _refuse_single(model: nn.Module) -> None:
    kind = kind_of(model) or ancestor_of(model)
    if (kind is not None and not kind.holds) or isinstance(model, nn.Linear):
        name = "Linear" if kind is None else kind.sparse.__name__.removeprefix("Sparse")
        raise UsageError(
            f"the model is a single {name}: use Sparse{name}.from_dense(model, config)"
        )


def _targets(
    model: nn.Module, filter_fn: FilterFn | None
) -> Iterator[tuple[str, Any, Kind | None]]:
    """Modules to decide on, with their kinds; None is a linear layer. A module that is reached by two
    names comes twice, and what lies inside one with a kind does not come again.
    """
    taken: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if not taken.isdisjoint(above(name)):
            continue
        kind = kind_of(module)
        if kind is not None and kind.holds:
            left_out = filter_fn is not None and not filter_fn(module, name)
            if not name or left_out or skip_reason_inside(module):
                continue  # its parts are looked at one by one
        elif kind is None:
            kind = ancestor_of(module)
            if kind is not None and kind.holds:
                continue
        if kind is not None:
            taken.add(name)
            yield name, module, kind
        elif is_linear(module):
            yield name, module, None


def _swap(
    module: Any,
    name: str,
    kind: Kind | None,
    kept: str,
    config: SparseConfig,
    filter_fn: FilterFn | None,
    taken: dict[int, str],
) -> Swap:
    if kind is None:
        return swap_linear(name, module, kept, config)
    if kind.whole:
        return swap_network(name, kind, module, kept, config)

    def keep_part(part: str, linear: nn.Linear) -> str:
        if not kind.holds:
            return ""
        child = part.split(".")[0]  # an attention, or a linear layer of the module's own
        owner = module.get_submodule(child)
        if filter_fn is not None and not filter_fn(owner, f"{name}.{child}"):
            return "left out by filter_fn"
        return taken.get(id(linear.weight), "")

    return swap_parts(name, kind, module, kept, config, keep_part)


def _reason_to_keep(
    module: Any, name: str, kind: Kind | None, filter_fn: FilterFn | None, taken: dict[int, str]
) -> str:
    if filter_fn is not None and not filter_fn(module, name):
        return "left out by filter_fn"
    if kind is None:
        told = skip_reason(module, type(module) if is_conv1d(module) else nn.Linear)
        weights = [module.weight]
    else:
        told = skip_reason(module) if kind is EXPERTS else skip_reason(module, kind.dense)
        told = told or next(filter(None, map(skip_reason, module.children())), "")
        weights = [p for p in module.parameters() if p.dim() > 1]
    if told:
        return told
    allowed = backend_of(weights[0]).input_dtypes
    other = next((weight.dtype for weight in weights if weight.dtype not in allowed), None)
    if other is not None:
        return f"is {other}: cast the model to float32 or bfloat16 first"
    if is_compressed(weights[0]):
        return "runs torch's 2:4 kernels already"
    return taken.get(id(weights[0]), "") or too_narrow(module)


def _taken_weights(model: nn.Module) -> dict[int, str]:
    """id(weight) -> why its layer stays dense, for weights that other modules read too."""
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) and isinstance(weight, Tensor):
            found[id(weight)] = f"tied to {name}"
    for name, why in directly_read(model).items():
        found[id(model.get_submodule(name).weight)] = why
    return found
