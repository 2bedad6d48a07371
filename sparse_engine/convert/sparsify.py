"""sparsify_ and densify_: replace the layers of any model by sparse ones, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from sparse_engine.backends.semi_structured import is_compressed, restored
from sparse_engine.config import SparseConfig
from sparse_engine.convert.kinds import SPARSE_CLASSES, base_kind_of, kind_of
from sparse_engine.convert.native import install_native, remove_native
from sparse_engine.convert.network import swap_network
from sparse_engine.convert.report import SparsifyReport, SparsifyRow, describe
from sparse_engine.convert.swap import Swap, swap_linear, swap_parts
from sparse_engine.convert.targets import FilterFn, Target, Targets
from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.frozen import freeze_, trainable_names, unfreeze_
from sparse_engine.modules.linears import as_conv1d
from sparse_engine.modules.names import prefixes
from sparse_engine.modules.readable import check_readable
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.transformer import disable_nested_tensors_, restore_nested_tensors_

# Attribute of a converted model: its dtype before, where no dense parameter is left that has it.
DENSE_DTYPE = "_dense_dtype"

Progress = Callable[[int, int, str], None]


def sparsify_(
    model: nn.Module,
    config: SparseConfig | str | None = None,
    filter_fn: FilterFn | None = None,
    progress: Progress | None = None,
) -> SparsifyReport:
    """Replace every layer of `model` that has a sparse counterpart, in place.

    These are torch.nn.Linear, Conv1d, MultiheadAttention, TransformerEncoderLayer and DecoderLayer,
    LSTM, GRU, RNN and their cells, Conv1D of GPT-2, and transformers' fused experts. Containers are
    replaced as a whole. Subclasses stay, and their parts are replaced one by one. Layers of known
    families (sparse_engine/models) then run natively, in one call a stack.

    A layer stays dense, with its reason in the report, if it is tied to an embedding, may compute
    something else than its class does (a subclass, forward hooks), has too few zeros, or is faster
    dense as "auto" measures it. Weights that are computed before each call (masks of
    torch.nn.utils.prune, weight norm, spectral norm, parametrizations) are replaced by their
    values. Parameters take no gradients from here on; `densify_` restores their flags.

    Args:
        model: a model that contains such layers; not such a layer itself.
        config: how to store the weights; by default the fastest format is measured.
        filter_fn: filter_fn(module, name) picks layers; all by default.
        progress: progress(done, total, name) is called after each layer.

    Returns:
        A row for each layer, and the share of zeros and of skipped work in the whole model.

    Raises:
        UsageError: `model` is itself such a layer, or a weight has no values, is quantised already,
            or does not fit the format.

    >>> print(se.sparsify_(model, se.SparseConfig(format="csr")))
    """
    config = SparseConfig.of(config)
    _check_not_single(model)
    check_readable(model)
    folded, trainable = fold_(model), trainable_names(model)
    dtype = _dtype_of(model)
    targets = Targets.of(model, filter_fn)
    if config.model_bytes is None:
        config = replace(config, model_bytes=targets.nbytes)
    # Modules that share their parameters share the sparse module. All are made before the first
    # one is replaced: an error leaves the model as it is.
    made: dict[tuple[int, ...], tuple[str, Swap]] = {}
    new: list[tuple[str, nn.Module]] = []
    rows: list[SparsifyRow] = []
    for done, target in enumerate(targets.found, 1):
        reason = targets.skip_reason(target)
        if reason or target.key not in made:
            made[target.key] = target.name, _swap(target, reason, config, targets)
        first, swap = made.pop(target.key) if reason else made[target.key]
        rows += [replace(r, name=target.name + r.name.removeprefix(first)) for r in swap.rows]
        if swap.new is not None:
            new.append((target.name, swap.new))
        if progress is not None:
            progress(done, len(targets.found), target.name)
    for name, module in new:
        model.set_submodule(name, module)
    disable_nested_tensors_(model)
    freeze_(model, trainable)
    if dtype not in (None, torch.float32):  # sparse layers store float32 by default
        setattr(model, DENSE_DTYPE, dtype)
    report = describe(model, _with_folded(rows, folded), targets)
    return replace(report, native=install_native(model))


def densify_(model: nn.Module) -> nn.Module:
    """Replace every sparse layer in `model` by its dense counterpart, in place.

    Native stacks are removed too. Weights are in the dtype of the model's other parameters. Where
    there are none, they are in bfloat16 if the model was in it when `sparsify_` was called, else as
    they are stored.

    Raises:
        UsageError: `model` is itself a sparse layer.
    """
    if isinstance(model, (SparseLinear, *SPARSE_CLASSES)):
        kind = type(model).__name__
        raise UsageError(f"the model is a single {kind}: use its to_dense()")
    remove_native(model)
    restore_nested_tensors_(model)
    dtype = _dtype_of(model) or vars(model).get(DENSE_DTYPE)
    vars(model).pop(DENSE_DTYPE, None)
    made: dict[int, nn.Module] = {}  # one dense module for all names of a sparse one
    inside: set[str] = set()  # sparse modules, whose parts become dense with them
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not inside.isdisjoint(prefixes(name)):
            continue
        if isinstance(module, SPARSE_CLASSES):
            inside.add(name)
        dense = made.get(id(module)) or _dense(module, dtype)
        if dense is not None:
            made[id(module)] = dense
            model.set_submodule(name, dense)
    unfreeze_(model)
    return model


def _swap(target: Target, reason: str, config: SparseConfig, targets: Targets) -> Swap:
    name, module, kind = target.name, target.module, target.kind
    if kind is None:
        return swap_linear(name, module, reason, config)
    if kind.packed_whole:
        return swap_network(name, kind, module, reason, config)
    return swap_parts(name, kind, module, reason, config, partial(targets.part_skip_reason, target))


def _dense(module: nn.Module, dtype: torch.dtype | None) -> nn.Module | None:
    """The dense counterpart of a sparse or compressed module; None for any other."""
    if isinstance(module, SPARSE_CLASSES):
        dense: nn.Module = module.to_dense(dtype)
        return dense
    if isinstance(module, SparseLinear):
        linear = module.to_dense(dtype)
        return as_conv1d(linear) if module.is_conv1d else linear
    if isinstance(module, nn.Linear) and is_compressed(module.weight):
        return restored(module)
    return None


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating-point parameter; None where there is none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _with_folded(rows: list[SparsifyRow], folded: dict[str, str]) -> tuple[SparsifyRow, ...]:
    """Rows whose reasons also name what was folded into their weights."""
    owners = [(row, next((f for f in folded if f in prefixes(row.name)), None)) for row in rows]
    return tuple(
        replace(row, reason=f"{row.reason}; {folded[owner]}") if owner is not None else row
        for row, owner in owners
    )


def _check_not_single(model: nn.Module) -> None:
    """Raise UsageError if `model` is itself a layer: it cannot be replaced in place."""
    kind = kind_of(model) or base_kind_of(model)
    if (kind is not None and not kind.is_container) or isinstance(model, nn.Linear):
        name = "Linear" if kind is None else kind.sparse.__name__.removeprefix("Sparse")
        raise UsageError(
            f"the model is a single {name}: use Sparse{name}.from_dense(model, config)"
        )
