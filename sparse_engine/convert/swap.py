"""How one module becomes sparse: a linear layer, or a module that consists of linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sparse_engine.auto.format import MIN_SPARSITY, Choice, choose_format, share_of_zeros
from sparse_engine.backends import backend_of
from sparse_engine.backends.semi_structured import restored
from sparse_engine.config import SparseConfig
from sparse_engine.convert.kinds import Kind
from sparse_engine.convert.report import SparsifyRow
from sparse_engine.convert.timing import faster, part_tokens
from sparse_engine.errors import UsageError
from sparse_engine.modules.linears import as_linear, is_conv1d
from sparse_engine.nn import SparseLinear

# part_reason(name, linear) -> why a linear layer of a module stays dense, or "".
PartReason = Callable[[str, nn.Linear], str]


@dataclass(frozen=True)
class Swap:
    """What replaces a module, or None where it stays, and its rows in the report."""

    new: nn.Module | None
    rows: tuple[SparsifyRow, ...]


def swap_linear(name: str, linear: Any, reason: str, config: SparseConfig) -> Swap:
    """A SparseLinear in place of a linear layer.

    If "auto" chooses dense, the weight may be compressed for torch's 2:4 kernels, in place.

    Args:
        name: the layer's name in the model.
        linear: the layer.
        reason: why it stays dense, or "".
        config: how to store its weight.
    """
    plain = restored(as_linear(linear))
    choice = Choice("dense", 1.0, {}, reason) if reason else _choose(plain, config)
    layer = None
    if choice.format != "dense":
        layer = _sparse(plain, choice, config).train(linear.training)
        layer.is_conv1d = is_conv1d(linear)
    compressed = None
    if choice.format == "dense" and config.format == "auto" and plain is linear and not reason:
        compressed, detail = backend_of(plain.weight).compress_linear(plain, config.tokens)
        choice = replace(choice, reason=f"{choice.reason}; {detail}" if detail else choice.reason)
    row = _row(name, "linear", [plain], [layer] if layer else [], choice, config)
    if compressed is not None:
        plain.weight = nn.Parameter(compressed, requires_grad=False)
    return Swap(layer, (row,))


def swap_parts(
    name: str,
    kind: Kind,
    module: Any,
    reason: str,
    config: SparseConfig,
    part_reason: PartReason,
) -> Swap:
    """The sparse counterpart of a module of linear layers, each of them sparse or left dense.

    Convolutions and experts get one format for all their layers. With "auto" the sparse module as a
    whole is timed against `module` as well.

    Args:
        name: the module's name in the model.
        kind: its kind.
        module: the module.
        reason: why it stays dense, or "".
        config: how to store its weights.
        part_reason: why one of its layers stays dense.
    """
    if not reason:
        try:
            sparse = kind.unpacked(module)
        except UsageError as error:
            reason = str(error)
    if reason:
        return Swap(None, (_dense_row(name, kind, module, reason),))
    part_config = replace(config, tokens=part_tokens(kind, module, config.tokens))
    rows, swapped = [], False
    for group, parts in _groups(kind, sparse).items():
        linears = [sparse.get_submodule(part) for part in parts]
        choice, layers = _choose_parts(linears, part_reason(group, linears[0]), kind, part_config)
        row_name = name if kind.name == "conv" else f"{name}.{group}"
        rows.append(_row(row_name, kind.name, linears, layers, choice, part_config))
        for part, layer in zip(parts, layers, strict=False):
            sparse.set_submodule(part, layer.train(module.training))
            swapped = True
    if swapped and config.format == "auto":
        swapped, detail = faster(kind, module, sparse, config)
        if not swapped:
            rows = [
                replace(row, format="dense", kernel="", bytes=row.dense_bytes, reason=detail)
                for row in rows
            ]
    return Swap(sparse if swapped else None, tuple(rows))


def too_few_zeros(weights: list[Tensor]) -> str:
    """Why weights stay dense for their few zeros; "" if they have enough."""
    share = _share_of_zeros(weights)
    return f"{share:.0%} zeros, no gain below {MIN_SPARSITY:.0%}" if share < MIN_SPARSITY else ""


def _groups(kind: Kind, sparse: nn.Module) -> dict[str, list[str]]:
    """Names of the linear layers in `sparse`, in groups that get one format each."""
    groups: dict[str, list[str]] = {}
    for part, linear in sparse.named_modules():
        if isinstance(linear, nn.Linear):
            group = part.rpartition(".")[0] if kind.uniform else part
            groups.setdefault(group, []).append(part)
    return groups


def _choose_parts(
    linears: list[nn.Linear], reason: str, kind: Kind, config: SparseConfig
) -> tuple[Choice, list[SparseLinear]]:
    """One format for all of `linears`, and their sparse layers; none where they stay dense."""
    if kind.uniform and not reason:
        reason = too_few_zeros([linear.weight for linear in linears])
    if reason:
        return Choice("dense", 1.0, {}, reason), []
    # Of a uniform kind the sparse module as a whole is timed against dense, not its layers.
    choice = _choose(linears[0], config, dense=not kind.uniform)
    if choice.format == "dense":
        return choice, []
    try:
        first = _sparse(linears[0], choice, config)
        unpacked = replace(choice, packed=None)
        return choice, [first, *(_sparse(linear, unpacked, config) for linear in linears[1:])]
    except UsageError:
        if config.format != "auto":
            raise
    # The first layer fits a pattern that others do not fit.
    choice = Choice("csr", 1.0, {}, f"{choice.format} does not fit all parts")
    return choice, [_sparse(linear, choice, config) for linear in linears]


def _sparse(linear: nn.Linear, choice: Choice, config: SparseConfig) -> SparseLinear:
    if choice.packed is not None:
        return SparseLinear.from_format(choice.packed, linear.bias, choice.format)
    return SparseLinear.from_dense(linear, replace(config, format=choice.format))


def _choose(linear: nn.Linear, config: SparseConfig, dense: bool = True) -> Choice:
    if config.format == "auto":
        return choose_format(linear.weight.detach(), config, dense)
    reason = too_few_zeros([linear.weight]) if dense else ""
    if reason:
        return Choice("dense", 1.0, {}, reason)
    return Choice(config.format, 1.0, {}, "requested")


def _share_of_zeros(weights: Sequence[Tensor]) -> float:
    """Share of zeros in several weights together, 0..1."""
    nonzeros = sum(int(weight.detach().count_nonzero()) for weight in weights)
    return 1 - nonzeros / max(sum(weight.numel() for weight in weights), 1)


def _dense_row(name: str, kind: Kind, module: nn.Module, reason: str) -> SparsifyRow:
    """The row of a module that stays as it is."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    rows, columns = max((w.flatten(1).shape for w in weights), key=lambda shape: shape.numel())
    size = sum(weight.nbytes for weight in weights)
    return SparsifyRow(
        name=name,
        shape=(rows, columns),
        sparsity=_share_of_zeros(weights),
        format="dense",
        kernel="",
        dense_bytes=size,
        bytes=size,
        reason=reason,
        kind=kind.name,
    )


def _row(
    name: str,
    kind: str,
    linears: list[nn.Linear],
    layers: list[SparseLinear],
    choice: Choice,
    config: SparseConfig,
) -> SparsifyRow:
    """A row about one linear layer, or about several of the same shape."""
    weights = [linear.weight.detach() for linear in linears]
    size = sum(weight.nbytes for weight in weights)
    return SparsifyRow(
        name=name,
        shape=(sum(map(len, weights)), weights[0].shape[1]),
        sparsity=sum(map(share_of_zeros, weights)) / len(weights),
        format=choice.format,
        kernel=layers[0].kernel(max(config.tokens)) if layers else "",
        dense_bytes=size,
        bytes=sum(layer.packed.nbytes for layer in layers) if layers else size,
        reason=choice.reason,
        times_us=choice.times_us,
        kind=kind,
    )
