"""How a recurrent network or cell becomes sparse, all its weights together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from sparse_engine.auto.format import share_of_zeros
from sparse_engine.auto.network import faster_network
from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.convert.kinds import Kind
from sparse_engine.convert.report import SparsifyRow
from sparse_engine.convert.swap import Swap, too_few_zeros
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.recurrent.cuda import step_kernel


def swap_network(name: str, kind: Kind, network: Any, reason: str, config: SparseConfig) -> Swap:
    """The sparse counterpart of a recurrent network or cell.

    Args:
        name: its name in the model.
        kind: its kind.
        network: torch.nn.LSTM, GRU or RNN, or one of their cells.
        reason: why it stays dense, or "".
        config: how to store its weights.
    """
    weights = [p for part, p in network.named_parameters() if part.startswith("weight")]
    reason = reason or too_few_zeros(weights)
    sparse = None
    if not reason:
        sparse, reason = _sparse_network(kind, network, config)
    return Swap(sparse, tuple(_rows(name, kind, network, sparse, reason)))


def _sparse_network(kind: Kind, network: Any, config: SparseConfig) -> tuple[nn.Module | None, str]:
    """The sparse network, or None if "auto" measures that the dense one is faster; and why.

    `faster_network` documents what is timed.
    """
    if config.format == "dense":
        return None, "requested"
    sparse: nn.Module = kind.sparse.from_dense(network, config)
    if config.format != "auto":
        return sparse, "requested"
    faster, detail = faster_network(network, sparse, config)
    return (sparse if faster else None), detail


def _rows(
    name: str, kind: Kind, network: Any, sparse: nn.Module | None, reason: str
) -> Iterator[SparsifyRow]:
    for part, parameter in network.named_parameters():
        if not part.startswith("weight"):
            continue
        layer_name = part.removeprefix("weight_")
        if isinstance(network, nn.RNNCellBase):  # a sparse cell contains a network of one layer
            layer_name = f"network.{layer_name}_l0"
        layer: Any = None if sparse is None else sparse.get_submodule(layer_name)
        yield SparsifyRow(
            name=f"{name}.{layer_name}",
            shape=tuple(parameter.shape),
            sparsity=share_of_zeros(parameter),
            format="dense" if layer is None else layer.format,
            kernel="" if layer is None else _kernel(layer, part),
            dense_bytes=parameter.nbytes,
            bytes=parameter.nbytes if layer is None else layer.packed.nbytes,
            reason=reason,
            kind=kind.name,
        )


def _kernel(layer: SparseLinear, part: str) -> str:
    if part.startswith("weight_hh") and not backend_of(layer.values).native_layers:
        return step_kernel(layer)
    return layer.kernel(128 if part.startswith("weight_ih") else 1)
