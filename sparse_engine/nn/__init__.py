"""Drop-in layers on packed sparse weights."""

from __future__ import annotations

from sparse_engine.modules.cut_attention import CutMultiheadAttention
from sparse_engine.nn.attention import SparseMultiheadAttention
from sparse_engine.nn.conv import SparseConv1d
from sparse_engine.nn.experts import SparseExperts
from sparse_engine.nn.linear import SparseLinear
from sparse_engine.nn.native.decoder import NativeDecoder
from sparse_engine.nn.native.encoder import NativeEncoder
from sparse_engine.nn.native.stack import NativeStack
from sparse_engine.nn.recurrent.base import SparseRNNBase
from sparse_engine.nn.recurrent.cells import (
    SparseGRUCell,
    SparseLSTMCell,
    SparseRNNCell,
    SparseRNNCellBase,
)
from sparse_engine.nn.recurrent.networks import (
    SparseGRU,
    SparseLSTM,
    SparseRNN,
)
from sparse_engine.nn.transformer import (
    SparseTransformerDecoderLayer,
    SparseTransformerEncoderLayer,
)

__all__ = [
    "CutMultiheadAttention",
    "NativeDecoder",
    "NativeEncoder",
    "NativeStack",
    "SparseConv1d",
    "SparseExperts",
    "SparseGRU",
    "SparseGRUCell",
    "SparseLSTM",
    "SparseLSTMCell",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseRNN",
    "SparseRNNBase",
    "SparseRNNCell",
    "SparseRNNCellBase",
    "SparseTransformerDecoderLayer",
    "SparseTransformerEncoderLayer",
]
