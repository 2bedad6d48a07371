"""Every sparse layer under torch.compile, torch.export and torch.jit.trace: values or a refusal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from whole_models import cut_

import sparse_engine as se
from sparse_engine.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore")


class Around(nn.Module):
    """A module called with one tensor [2, 6, 16], as it takes it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.RNNCellBase) or hasattr(self.inner, "network"):
            x = x[:, 0]
        y: Any = self.inner(*((x, x, x) if hasattr(self.inner, "num_heads") else (x,)))
        return y[0] if isinstance(y, tuple) else y


class Decoded(nn.TransformerDecoder):
    """A decoder over its own input."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x)


SIZES: dict[str, Any] = {"dropout": 0.0, "batch_first": True}
TRACED = {
    "linear": lambda: nn.Linear(16, 24),
    "conv": lambda: nn.Conv1d(6, 24, 3, groups=2),
    "attention": lambda: nn.MultiheadAttention(16, 4, batch_first=True),
    "encoder layer": lambda: nn.TransformerEncoderLayer(16, 4, 32, **SIZES),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, **SIZES), 2),
    "decoder": lambda: Decoded(nn.TransformerDecoderLayer(16, 4, 32, **SIZES), 2),
}
NETWORKS = {
    "lstm": lambda: nn.LSTM(16, 16, batch_first=True),
    "gru": lambda: nn.GRU(16, 16, 2, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(16, 16, batch_first=True),
    "lstm cell": lambda: nn.LSTMCell(16, 16),
    "gru cell": lambda: nn.GRUCell(16, 16),
}


def pair(make: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = Around(cut_(make())).eval()
    sparse = copy.deepcopy(dense)
    assert se.sparsify_(sparse, "csr").swapped
    return dense, sparse


@pytest.mark.parametrize("kind", TRACED)
@pytest.mark.parametrize("way", ["compile", "export", "trace"])
def test_layers_are_traced_as_one_graph(kind: str, way: str) -> None:
    dense, sparse = pair(TRACED[kind])
    x, other = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    with torch.no_grad():
        made: Any
        if way == "compile":
            torch.compiler.reset()
            made = torch.compile(sparse, fullgraph=True, backend="aot_eager")
        elif way == "export":
            made = torch.export.export(sparse, (x,)).module()
        else:
            made = torch.jit.trace(sparse, (x,))
        made(x)
        torch.testing.assert_close(made(other), dense(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_break_a_compiled_graph_and_refuse_others(kind: str) -> None:
    dense, sparse = pair(NETWORKS[kind])
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        torch.compiler.reset()
        compiled = torch.compile(sparse, backend="aot_eager")
        torch.testing.assert_close(compiled(x), dense(x), rtol=1e-5, atol=1e-5)
        sparse(x)  # a step that was made ready before must not be baked into a trace
        with pytest.raises(UsageError, match="cannot be traced or exported: densify_"):
            torch.jit.trace(sparse, (x,))
        with pytest.raises(UsageError, match="cannot be traced or exported: densify_"):
            torch.export.export(sparse, (x,))
