"""How one module becomes sparse: a linear layer, the parts of a twin, or a network as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sparse_engine.auto.format import MIN_SPARSITY, Choice, choose_format, share_of_zeros
from sparse_engine.auto.network import faster_network
from sparse_engine.backends import backend_of
from sparse_engine.backends.semi_structured import restored
from sparse_engine.config import SparseConfig
from sparse_engine.convert.kinds import Kind, faster, like, tokens_of
from sparse_engine.convert.report import SparsifyRow
from sparse_engine.errors import UsageError
from sparse_engine.modules.linears import as_linear, is_conv1d
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.recurrent.cuda import step_kernel


@dataclass(frozen=True)
class Swap:
    """What a module is replaced by, or None where it stays; and its rows."""

    new: nn.Module | None
    rows: tuple[SparsifyRow, ...]


def swap_linear(name: str, linear: Any, kept: str, config: SparseConfig) -> Swap:
    """A SparseLinear; where "auto" found none, the weight may be compressed for torch's 2:4 kernels.

    kept: why the layer stays dense, or "".
    """
    plain = restored(as_linear(linear))
    choice = Choice("dense", 1.0, {}, kept) if kept else _choose(plain, config)
    layer = None
    if choice.format != "dense":
        layer = _sparse(plain, choice, config).train(linear.training)
        layer.is_conv1d = is_conv1d(linear)
    compressed = None
    if choice.format == "dense" and config.format == "auto" and plain is linear and not kept:
        compressed, told = backend_of(plain.weight).compress_linear(plain, config.tokens)
        choice = replace(choice, reason=f"{choice.reason}; {told}" if told else choice.reason)
    row = _row(name, "linear", [plain], [layer] if layer else [], choice, config)
    if compressed is not None:
        plain.weight = nn.Parameter(compressed, requires_grad=False)
    return Swap(layer, (row,))


def swap_network(name: str, kind: Kind, network: Any, kept: str, config: SparseConfig) -> Swap:
    """The sparse twin of a recurrent network or cell, all of whose weights are packed."""
    weights = [p for n, p in network.named_parameters() if n.startswith("weight")]
    kept = kept or _too_few_zeros(weights)
    twin, why = (None, kept) if kept else _sparse_network(kind, network, config)
    return Swap(twin, tuple(_network_rows(name, kind, network, twin, why)))


def swap_parts(
    name: str,
    kind: Kind,
    module: Any,
    kept: str,
    config: SparseConfig,
    keep_part: Callable[[str, nn.Linear], str],
) -> Swap:
    """The twin of a module that consists of linear layers, each of them sparse or left dense.

    Convolutions and experts take one format for all their parts. keep_part(name, linear) says why a
    part stays dense, or "". With "auto" the whole twin is timed against the module as well.
    """
    if not kept:
        try:
            twin = like(kind, module)
        except UsageError as error:
            kept = str(error)
    if kept:
        weights = [p for p in module.parameters() if p.dim() > 1]
        size = sum(weight.nbytes for weight in weights)
        zero = 1 - sum(map(_nonzeros, weights)) / max(sum(w.numel() for w in weights), 1)
        shape = max((w.flatten(1).shape for w in weights), key=lambda s: s.numel())
        row = SparsifyRow(name, tuple(shape), zero, "dense", "", size, size, kept, {}, kind.name)
        return Swap(None, (row,))
    wanted = SparseConfig(config.format, config.dtype, tokens_of(kind, module, config.tokens))
    groups: dict[str, list[str]] = {}
    for part, linear in twin.named_modules():
        if isinstance(linear, nn.Linear):
            group = part.rpartition(".")[0] if kind.uniform else part
            groups.setdefault(group, []).append(part)
    rows, swapped = [], False
    for group, parts in groups.items():
        linears = [twin.get_submodule(part) for part in parts]
        choice, layers = _choose_parts(linears, keep_part(group, linears[0]), kind, wanted)
        called = name if kind.name == "conv" else f"{name}.{group}"
        rows.append(_row(called, kind.name, linears, layers, choice, wanted))
        for part, layer in zip(parts, layers, strict=False):
            replace_(twin, part, layer.train(module.training))
            swapped = True
    if swapped and config.format == "auto":
        swapped, told = faster(kind, module, twin, config.tokens)
        if not swapped:
            rows = [
                replace(row, format="dense", kernel="", bytes=row.dense_bytes, reason=told)
                for row in rows
            ]
    return Swap(twin if swapped else None, tuple(rows))


def replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` is in `model`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _choose_parts(
    linears: list[nn.Linear], kept: str, kind: Kind, config: SparseConfig
) -> tuple[Choice, list[SparseLinear]]:
    """One format for all of `linears`, and their sparse layers; none where they stay dense."""
    if kind.uniform and not kept:
        kept = _too_few_zeros([linear.weight for linear in linears])
    if kept:
        return Choice("dense", 1.0, {}, kept), []
    # Of a uniform kind the whole twin is timed against the dense module, not its parts.
    choice = _choose(linears[0], config, dense=not kind.uniform)
    if choice.format == "dense":
        return choice, []
    try:
        first = _sparse(linears[0], choice, config)
        spec = replace(choice, packed=None)
        return choice, [first, *(_sparse(linear, spec, config) for linear in linears[1:])]
    except UsageError:
        if config.format != "auto":
            raise
    # The first fits a pattern that others do not have.
    choice = Choice("csr", 1.0, {}, f"{choice.format} does not fit all parts")
    return choice, [_sparse(linear, choice, config) for linear in linears]


def _sparse(linear: nn.Linear, choice: Choice, config: SparseConfig) -> SparseLinear:
    if choice.packed is not None:
        return SparseLinear.from_format(choice.packed, linear.bias, choice.format)
    return SparseLinear.from_dense(linear, replace(config, format=choice.format))


def _choose(linear: nn.Linear, config: SparseConfig, dense: bool = True) -> Choice:
    if config.format == "auto":
        return choose_format(linear.weight.detach(), config, dense)
    kept = _too_few_zeros([linear.weight]) if dense else ""
    if kept:
        return Choice("dense", 1.0, {}, kept)
    return Choice(config.format, 1.0, {}, "asked for")


def _too_few_zeros(weights: list[Tensor]) -> str:
    share = 1 - sum(map(_nonzeros, weights)) / max(sum(w.numel() for w in weights), 1)
    return f"{share:.0%} zeros, no gain below {MIN_SPARSITY:.0%}" if share < MIN_SPARSITY else ""


def _nonzeros(weight: Tensor) -> int:
    return int(weight.detach().count_nonzero())


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


def _sparse_network(kind: Kind, network: Any, config: SparseConfig) -> tuple[nn.Module | None, str]:
    """The sparse twin, or None if "auto" measures that the network is faster; and why.

    `choose_network` says what it times.
    """
    if config.format == "dense":
        return None, "asked for"
    twin: nn.Module = kind.sparse.from_dense(network, config)
    if config.format != "auto":
        return twin, "asked for"
    kept, why = faster_network(network, twin, config.tokens)
    return (twin if kept else None), why


def _network_rows(
    name: str, kind: Kind, network: Any, twin: nn.Module | None, why: str
) -> list[SparsifyRow]:
    rows = []
    for part, parameter in network.named_parameters():
        if not part.startswith("weight"):
            continue
        which = part.removeprefix("weight_")
        if isinstance(network, nn.RNNCellBase):  # its twin holds a network of one layer
            which = f"network.{which}_l0"
        layer: Any = None if twin is None else twin.get_submodule(which)
        rows.append(
            SparsifyRow(
                name=f"{name}.{which}",
                shape=tuple(parameter.shape),
                sparsity=share_of_zeros(parameter),
                format="dense" if layer is None else layer.format,
                kernel="" if layer is None else _kernel_of(layer, part),
                dense_bytes=parameter.nbytes,
                bytes=parameter.nbytes if layer is None else layer.packed.nbytes,
                reason=why,
                kind=kind.name,
            )
        )
    return rows


def _kernel_of(layer: SparseLinear, part: str) -> str:
    if layer.values.is_cuda and part.startswith("weight_hh"):
        return step_kernel(layer)
    return layer.kernel(128 if part.startswith("weight_ih") else 1)
