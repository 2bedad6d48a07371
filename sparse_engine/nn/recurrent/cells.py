"""SparseLSTMCell, SparseGRUCell, SparseRNNCell: single time steps, as the torch.nn cells are."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sparse_engine.config import SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import check_plain
from sparse_engine.nn.recurrent.arguments import State, States
from sparse_engine.nn.recurrent.base import SparseRNNBase
from sparse_engine.nn.recurrent.networks import SparseGRU, SparseLSTM, SparseRNN

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""The parameters of a torch.nn cell; those of a network's first layer end with "_l0"."""


class SparseRNNCellBase(nn.Module):
    """A cell, which holds a network of one layer and runs single steps of it."""

    network: SparseRNNBase
    dense_cell: ClassVar[type[Any]]
    sparse_network: ClassVar[type[Any]]
    argument_names: ClassVar[tuple[str, ...]] = ("input_size", "hidden_size", "bias")
    """Arguments of the cells and of the networks, sparse and dense."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero cell with the signature of the torch.nn one."""
        super().__init__()
        self.network = self.sparse_network(
            input_size, hidden_size, bias=bias, device=device, dtype=dtype
        )

    @property
    def input_size(self) -> int:
        """Features of the input."""
        return self.network.input_size

    @property
    def hidden_size(self) -> int:
        """Features of the state."""
        return self.network.hidden_size

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self.network.bias

    @classmethod
    def like(cls, cell: Any, device: torch.device | str | None = None) -> Self:
        """A cell without weights, with the sizes of a torch.nn one."""
        return cls(**cls._arguments(cell), device=device)

    @classmethod
    def from_dense(cls, cell: nn.RNNCellBase, config: SparseConfig | str | None = None) -> Self:
        """Store the weights of a torch.nn cell as `config.format` in `config.dtype`.

        Raises:
            UsageError: The cell is of another class, or a weight does not fit.
        """
        check_plain(cell)
        if type(cell) is not cls.dense_cell:
            raise UsageError(
                f"{cls.__name__} replaces torch.nn.{cls.dense_cell.__name__}: "
                f"{type(cell).__name__} is another class"
            )
        network = cls.sparse_network.dense_class(**cls._arguments(cell), device="meta")
        _copy_parameters(cell, "", network, "_l0")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.network = cls.sparse_network.from_dense(network, config)
        return made.train(cell.training)

    def to_dense(self, dtype: torch.dtype | None = None) -> Any:
        """The torch.nn cell with the same weights."""
        cell: nn.Module = self.dense_cell(**self._arguments(self), device="meta")
        _copy_parameters(self.network.to_dense(dtype), "_l0", cell, "")
        return cell.train(self.training)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """The new state, h or (h, c) [batch, hidden], of input [batch, in] or [in].

        hx is not changed; None is zeros. Raises UsageError where sizes do not fit.
        """
        network, given = self.network, _states(hx)
        if hx is not None and given:
            new = _state(tuple(map(torch.empty_like, given)))
            if network.native_runner.step(network, input, hx, new, ()) is not None:
                return new
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        state: Any = None
        if hx is not None:
            layers = tuple(_as_layer(t, batched).clone() for t in given)
            # A tuple stays one, so that the network refuses a tuple of the wrong length.
            state = layers[0] if isinstance(hx, Tensor) else layers
        _, last = network.step(x, state)
        return _state(tuple(t[0] if batched else t[0, 0] for t in _states(last)))

    @classmethod
    def _arguments(cls, cell: Any) -> dict[str, Any]:
        return {name: getattr(cell, name) for name in cls.argument_names}


class SparseLSTMCell(SparseRNNCellBase):
    """torch.nn.LSTMCell on packed sparse weights."""

    dense_cell = nn.LSTMCell
    sparse_network = SparseLSTM


class SparseGRUCell(SparseRNNCellBase):
    """torch.nn.GRUCell on packed sparse weights."""

    dense_cell = nn.GRUCell
    sparse_network = SparseGRU


class SparseRNNCell(SparseRNNCellBase):
    """torch.nn.RNNCell on packed sparse weights; nonlinearity "tanh" or "relu"."""

    dense_cell = nn.RNNCell
    sparse_network = SparseRNN
    argument_names = (*SparseRNNCellBase.argument_names, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero cell with the signature of torch.nn.RNNCell."""
        nn.Module.__init__(self)
        options: Any = {"bias": bias, "device": device, "dtype": dtype}
        self.network = SparseRNN(input_size, hidden_size, nonlinearity=nonlinearity, **options)

    @property
    def nonlinearity(self) -> str:
        """tanh or relu."""
        network: Any = self.network
        return str(network.nonlinearity)


CELLS: dict[type[nn.RNNCellBase], type[SparseRNNCellBase]] = {
    cls.dense_cell: cls for cls in (SparseLSTMCell, SparseGRUCell, SparseRNNCell)
}


def _copy_parameters(source: Any, suffix: str, target: nn.Module, target_suffix: str) -> None:
    """Give `target` the parameters of `source`, which it shares."""
    for name in PARAMETERS:
        tensor = getattr(source, name + suffix, None)
        if tensor is not None:
            parameter = nn.Parameter(tensor.detach(), requires_grad=False)
            setattr(target, name + target_suffix, parameter)


def _states(state: State | None) -> States:
    """h or (h, c) as a tuple."""
    return (state,) if isinstance(state, Tensor) else tuple(state or ())


def _state(states: States) -> State:
    """The inverse of `_states`."""
    return states[0] if len(states) == 1 else (states[0], states[1])


def _as_layer(state: Tensor, batched: bool) -> Tensor:
    """[hidden] or [batch, hidden] as the state of one layer, [1, batch, hidden]."""
    if state.dim() != (2 if batched else 1):
        raise UsageError(f"state is {list(state.shape)}, the input's batch has another shape")
    return state.detach().view(1, *((1,) if not batched else ()), *state.shape)
