"""SparseLSTMCell, SparseGRUCell, SparseRNNCell: single time steps, as torch.nn's of the same names."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_engine.config import SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import check_plain
from sparse_engine.nn.recurrent.base import SparseRNNBase, State
from sparse_engine.nn.recurrent.networks import SparseGRU, SparseLSTM, SparseRNN

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class SparseRNNCellBase(nn.Module):
    """One step of a network of one layer, which it holds."""

    network: SparseRNNBase
    dense_cell: type[Any]

    def __init__(self, network: SparseRNNBase) -> None:
        super().__init__()
        self.network = network

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
        extra = {"nonlinearity": cell.nonlinearity} if isinstance(cell, nn.RNNCell) else {}
        kind: Any = cls
        made: Self = kind(cell.input_size, cell.hidden_size, cell.bias, device=device, **extra)
        return made

    @classmethod
    def _dense_network(cls, cell: Any) -> nn.RNNBase:
        """torch.nn's network of one layer with the weights of `cell`."""
        raise NotImplementedError

    @classmethod
    def from_dense(cls, cell: nn.RNNCellBase, config: SparseConfig | str | None = None) -> Self:
        """Store the weights of torch.nn's cell as `config.format` in `config.dtype`."""
        check_plain(cell)
        if type(cell) is not cls.dense_cell:
            raise UsageError(f"{cls.__name__} stands for another class than {type(cell).__name__}")
        made = cls.__new__(cls)
        kind: Any = cls
        network = cls._dense_network(cell)
        for part in PARTS:
            tensor = getattr(cell, part)
            if tensor is not None:
                parameter = nn.Parameter(tensor.detach(), requires_grad=False)
                setattr(network, f"{part}_l0", parameter)
        SparseRNNCellBase.__init__(made, kind.sparse_network.from_dense(network, config))
        return made.train(cell.training)

    def to_dense(self, dtype: torch.dtype | None = None) -> Any:
        """torch.nn's cell with the same weights."""
        network = self.network.to_dense(dtype)
        cell = self._empty_dense(network)
        for part in PARTS:
            if getattr(cell, part) is not None:
                parameter = nn.Parameter(getattr(network, f"{part}_l0"), requires_grad=False)
                setattr(cell, part, parameter)
        return cell.train(self.training)

    def _empty_dense(self, network: Any) -> nn.Module:
        made: nn.Module = self.dense_cell(
            network.input_size, network.hidden_size, network.bias, device="meta"
        )
        return made

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """The new state, h or (h, c) [batch, hidden], of input [batch, in] or [in]."""
        if hx is not None:
            pair = not isinstance(hx, Tensor)
            into: State = torch.empty_like(hx) if isinstance(hx, Tensor) else _like(hx)
            network = self.network
            if network.plain_step(input, hx, into, ()) is not None:
                return into
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        state: Any = None
        if hx is not None:
            state = tuple(_as_layer(t, batched).clone() for t in (hx if pair else (hx,)))  # type: ignore[arg-type]
            state = state if pair else state[0]
        _, last = self.network.step(x, state)
        if isinstance(last, tuple):
            h, c = (t[0] if batched else t[0, 0] for t in last)
            return h, c
        return last[0] if batched else last[0, 0]


def _like(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(pair[0]), torch.empty_like(pair[1])


def _as_layer(state: Tensor, batched: bool) -> Tensor:
    if state.dim() != (2 if batched else 1):
        raise UsageError(f"state is {list(state.shape)}, the input's batch has another shape")
    return state.detach().view(1, *((1,) if not batched else ()), *state.shape)


class SparseLSTMCell(SparseRNNCellBase):
    """torch.nn.LSTMCell on packed sparse weights."""

    dense_cell = nn.LSTMCell
    sparse_network = SparseLSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero cell with the signature of torch.nn.LSTMCell."""
        super().__init__(SparseLSTM(input_size, hidden_size, bias=bias, device=device, dtype=dtype))

    @classmethod
    def _dense_network(cls, cell: Any) -> nn.RNNBase:
        return nn.LSTM(cell.input_size, cell.hidden_size, bias=cell.bias, device="meta")


class SparseGRUCell(SparseRNNCellBase):
    """torch.nn.GRUCell on packed sparse weights."""

    dense_cell = nn.GRUCell
    sparse_network = SparseGRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero cell with the signature of torch.nn.GRUCell."""
        super().__init__(SparseGRU(input_size, hidden_size, bias=bias, device=device, dtype=dtype))

    @classmethod
    def _dense_network(cls, cell: Any) -> nn.RNNBase:
        return nn.GRU(cell.input_size, cell.hidden_size, bias=cell.bias, device="meta")


class SparseRNNCell(SparseRNNCellBase):
    """torch.nn.RNNCell on packed sparse weights."""

    dense_cell = nn.RNNCell
    sparse_network = SparseRNN

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
        made: Any = {"device": device, "dtype": dtype}
        super().__init__(SparseRNN(input_size, hidden_size, 1, nonlinearity, bias, **made))

    @property
    def nonlinearity(self) -> str:
        """tanh or relu."""
        network: Any = self.network
        return str(network.nonlinearity)

    @classmethod
    def _dense_network(cls, cell: Any) -> nn.RNNBase:
        sizes = (cell.input_size, cell.hidden_size, 1, cell.nonlinearity, cell.bias)
        return nn.RNN(*sizes, device="meta")

    def _empty_dense(self, network: Any) -> nn.Module:
        sizes = (network.input_size, network.hidden_size, network.bias, network.nonlinearity)
        return nn.RNNCell(*sizes, device="meta")


CELLS: dict[type[nn.RNNCellBase], type[SparseRNNCellBase]] = {
    nn.LSTMCell: SparseLSTMCell,
    nn.GRUCell: SparseGRUCell,
    nn.RNNCell: SparseRNNCell,
}
