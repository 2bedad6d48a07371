"""SparseLSTM, SparseGRU, SparseRNN: torch.nn.LSTM, GRU and RNN on packed sparse weights.

Whole sequences run in one native call (csrc/layers/recurrent.h). Inference only.
"""

from __future__ import annotations

import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.nn.recurrent.base import SparseRNNBase


class SparseLSTM(SparseRNNBase):
    """torch.nn.LSTM on packed sparse weights.

    >>> lstm = SparseLSTM.from_dense(torch.nn.LSTM(1024, 1024, 2), se.SparseConfig(format="csr"))
    >>> y, (h, c) = lstm(torch.randn(64, 1, 1024))
    """

    modes = ("LSTM",)
    dense_class = nn.LSTM
    argument_names = (*SparseRNNBase.argument_names, "proj_size")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero network with the signature of torch.nn.LSTM."""
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__("LSTM", *sizes, proj_size, device, dtype)


class SparseGRU(SparseRNNBase):
    """torch.nn.GRU on packed sparse weights."""

    modes = ("GRU",)
    dense_class = nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero network with the signature of torch.nn.GRU."""
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__("GRU", *sizes, device=device, dtype=dtype)


class SparseRNN(SparseRNNBase):
    """torch.nn.RNN on packed sparse weights; nonlinearity "tanh" or "relu"."""

    modes = ("RNN_TANH", "RNN_RELU")
    dense_class = nn.RNN
    argument_names = (*SparseRNNBase.argument_names, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An all-zero network with the signature of torch.nn.RNN."""
        if nonlinearity not in ("tanh", "relu"):
            raise UsageError(f"nonlinearity {nonlinearity!r}: use tanh or relu")
        self.nonlinearity = nonlinearity
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(f"RNN_{nonlinearity.upper()}", *sizes, device=device, dtype=dtype)


NETWORKS: dict[type[nn.RNNBase], type[SparseRNNBase]] = {
    cls.dense_class: cls for cls in (SparseLSTM, SparseGRU, SparseRNN)
}
