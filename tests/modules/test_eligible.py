"""What is never read: modules that compute more than their class, weights without values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from takeover_models import (
    IDS,
    Doubled,
    bert,
    is_native,
    louder_output,
    states,
    thinned,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.modules.eligible import skip_reason, skip_reason_inside


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner, self.out = kind(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.out(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM, nn.GRU, nn.RNN, nn.GRUCell])
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward", "subclass"])
def test_every_swap_leaves_what_is_more_than_its_class(kind: type[nn.Module], how: str) -> None:
    torch.manual_seed(0)
    own = type("Own", (kind,), {})
    model = Net(own if how == "subclass" else kind).eval()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            parameter.data *= torch.rand_like(parameter) < 0.3
    if how == "hook":
        model.inner.register_forward_hook(louder_output)
    elif how == "pre-hook":
        model.inner.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    elif how == "forward":
        old = model.inner.forward
        model.inner.forward = lambda x: old(1.5 * x)
    x = torch.randn(3, 8)
    expected = model(x)
    report = se.sparsify_(model, "csr")
    reasons = {row.name.split(".")[0]: row.reason for row in report.rows}
    expected_reason = {
        "hook": "hooks",
        "pre-hook": "hooks",
        "forward": "forward of its own",
        "subclass": "Own",
    }
    assert expected_reason[how] in reasons["inner"]
    assert reasons["out"] == "requested"
    assert torch.allclose(model(x), expected, atol=1e-5)


class Quantised(Tensor):
    """Stands for the tensors of torchao."""


def test_weights_that_are_no_plain_tensors_are_left_alone() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.Tensor._make_subclass(Quantised, torch.zeros(4, 4)))
    assert skip_reason(layer, nn.Linear) == "has a weight that is a Quantised"


def test_parametrizations_are_named() -> None:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert skip_reason(layer, nn.Linear) == "has a parametrization of weight"
    assert skip_reason_inside(nn.Sequential(nn.Linear(4, 4), nn.ReLU())) == ""


def test_a_sparse_encoder_layer_calls_what_has_hooks() -> None:
    torch.manual_seed(0)
    dense = thinned(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True))
    layer = se.nn.SparseTransformerEncoderLayer.from_dense(dense, "csr").eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = layer(x)
        layer.norm2.register_forward_hook(louder_output)
        with pytest.warns(UserWarning, match="norm2 has forward hooks"):
            found = layer(x)
    assert torch.allclose(found, 1.5 * expected, atol=1e-5)


def test_models_stay_callable_outside_no_grad_and_flags_come_back() -> None:
    model = bert()
    model.encoder.layer[0].output.LayerNorm.bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert len(set(flags.values())) == 2
    expected = states(model)
    se.sparsify_(model, "csr")
    assert is_native(model)
    for one in (model, copy.deepcopy(model)):
        y = one(input_ids=IDS)[0]
        assert not y.requires_grad
        assert torch.allclose(y, expected, atol=1e-5)
        se.densify_(one)
        assert {name: p.requires_grad for name, p in one.named_parameters()} == flags
        assert torch.allclose(states(one), expected, atol=1e-5)


def test_flags_of_networks_and_of_parts_come_back() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), Net(nn.LSTM), nn.LayerNorm(8)).eval()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            parameter.data *= torch.rand_like(parameter) < 0.3
    model[2].weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    se.sparsify_(model[1], "csr")
    se.sparsify_(model, "csr")
    assert not model(torch.arange(6)).requires_grad
    se.densify_(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@pytest.mark.parametrize(
    "call", [se.sparsify_, lambda m, c: se.prune(m, 0.5)], ids=["sparsify", "prune"]
)
def test_weights_that_cannot_be_read_are_one_line(call: Callable[[Any, str], Any]) -> None:
    with torch.device("meta"):
        empty = Net(nn.Linear)
    with pytest.raises(UsageError, match=r"inner.weight has no values, it is on the meta device"):
        call(empty, "csr")
    half = Net(nn.LSTM)
    half.out.to("meta")
    with pytest.raises(UsageError, match=r"out.weight has no values"):
        call(half, "csr")
    quantised = torch.ao.quantization.quantize_dynamic(Net(nn.Linear), {nn.Linear}, torch.qint8)
    with pytest.raises(UsageError, match=r"inner is quantised already"):
        call(quantised, "csr")


def test_layers_whose_weight_is_read_are_left_or_refused() -> None:
    """A meta tensor times an ordinary one gives garbage without an error."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
    config = transformers.MambaConfig(**sizes, time_step_rank=8)
    torch.manual_seed(0)
    mamba = transformers.MambaForCausalLM(config).eval()
    report = se.prune(mamba, 0.8)
    assert sum("read or written by a MambaMixer" in left.reason for left in report.left) == 2
    for module in mamba.modules():  # as another tool would prune them
        if isinstance(module, nn.Linear):
            module.weight.data[module.weight.abs() < 0.01] = 0
    ids = torch.randint(96, (2, 9))
    with torch.inference_mode():
        expected = mamba(ids).logits
        report_of_swap = se.sparsify_(mamba, "csr")
        torch.testing.assert_close(mamba(ids).logits, expected, rtol=0, atol=2e-5)
    kept = [row for row in report_of_swap.rows if row.name.endswith("dt_proj")]
    assert [row.format for row in kept] == ["dense"] * 2

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            return self.fc.weight @ x.to(self.fc.weight.dtype)

    own = Own()
    se.prune(own, 0.5)
    se.sparsify_(own, "csr")
    assert (own.fc.weight.dtype, own.fc.weight.shape) == (torch.float32, (8, 8))
    with pytest.raises(UsageError, match="reads that weight instead of calling the layer"):
        own(torch.randn(8, 3))
