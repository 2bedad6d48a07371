"""Machine without its clock: copies, names, bytes, kernels of stacks; and the inputs of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import batches, mlp, same, state
from torch import nn

from sparse_engine.auto.format import Choice
from sparse_engine.errors import UsageError
from sparse_engine.models.inputs import positions
from sparse_engine.pruning.allocators.base import Setting
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.granularity import Block, Element
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.target.machine import Machine
from sparse_engine.pruning.target.outputs import OutputError, first_tensor
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.target.timing import inputs_of
from sparse_engine.pruning.unrolled import unrolled

TARGET = Target(speedup=2.0, tokens=8)
SPARSE = Setting(Element(), 0.75)


def machine(model: nn.Module) -> Machine:
    return Machine(model, TARGET, {})


class Tagger(nn.Module):
    """An LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.lstm(x)[0])
        return y


@pytest.mark.parametrize("build", [bert, Tagger])
def test_a_copy_is_converted_with_the_weights_by_their_names(build: Any) -> None:
    model = build().eval()
    before = state(model)
    measures = machine(model)
    with unrolled(model):
        layers = [(layer.name, layer.shape) for layer in make_plan(model).layers]
    weights = {name: (measures.random_weight(shape, SPARSE), None) for name, shape in layers}
    found = measures.measure(weights, "csr", clock=False)
    assert {name: found.formats[name] for name, _ in layers} == dict.fromkeys(weights, "csr")
    assert same(before, state(model))
    emptier = {
        name: (weight * (torch.rand(weight.shape) < 0.2), None)
        for name, (weight, _) in weights.items()
    }
    assert measures.measure(emptier, "csr", clock=False).nbytes < found.nbytes
    stacked = {"encoder": False} if build is bert else {}
    assert found.stacked == stacked


def test_random_weights_have_the_pattern() -> None:
    weight = machine(mlp()).random_weight((32, 24), Setting(Block(4, 1), 0.5))
    kept = (weight != 0).view(8, 4, 24).sum(1)
    assert sorted(kept.unique().tolist()) == [0, 4]
    assert int((kept == 0).sum()) == 8 * 24 // 2


@pytest.mark.parametrize(
    ("chosen", "causal", "tokens", "runs_as"),
    [
        ("bitmask", None, 128, "bitmask"),  # outside of stacks a layer runs in its format
        ("bitmask", False, 128, "csr"),  # panels of tokens are multiplied by runs
        ("dense", False, 128, "csr"),
        ("bsr:16x1", False, 128, "bsr:16x1"),  # tall blocks keep their kernel
        ("csr", True, 1, "sellp"),  # rows of a decoder
        ("csr", True, 128, "csr"),
    ],
)
def test_a_layer_costs_what_its_kernel_takes(
    chosen: str, causal: bool | None, tokens: int, runs_as: str
) -> None:
    times = {"dense": 100.0, "csr": 60.0, "bitmask": 40.0, "sellp": 30.0, "bsr:16x1": 20.0}
    measures = Machine(mlp(), Target(speedup=2.0, tokens=tokens), {})
    choice = Choice(chosen, 0.5, {spec: {tokens: us} for spec, us in times.items()}, "")
    measures._choices[(8, 8), SPARSE] = choice
    measures._dense_us[8, 8] = 50.0  # the shortest time of dense, in another round
    format, ms = measures.layer((8, 8), SPARSE, causal)
    assert format == chosen
    assert ms == pytest.approx(times[runs_as] / 2 / 1000)


def test_a_layer_without_zeros_stays_dense() -> None:
    measures = machine(mlp())
    times = {"dense": {8: 100.0}, "csr": {8: 60.0}}
    measures._choices[(8, 8), Setting(Element(), 0.0)] = Choice("csr", 0.6, times, "")
    measures._dense_us[8, 8] = 100.0
    assert measures.layer((8, 8), Setting(Element(), 0.0), None) == ("dense", 0.1)
    assert measures.layer((8, 8), Setting(Element(), 0.0), False) == ("dense", 0.06)


def test_inputs_have_the_tokens_that_were_asked_for() -> None:
    model = bert()
    most = positions(model)
    assert most is not None
    for tokens, shape in ((8, (1, 8)), (most, (1, most)), (2 * most + 2, (3, (2 * most + 4) // 3))):
        inputs = inputs_of(model, tokens, [])
        assert isinstance(inputs, dict)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape == shape


def test_inputs_of_other_models_repeat_a_calibration_input() -> None:
    (x,) = inputs_of(mlp(), 24, [Batch((batches()[0],), {})])
    assert torch.equal(x, torch.cat([batches()[0]] * 4))
    named = inputs_of(mlp(), 3, [Batch((), {"input": batches()[0], "flag": True})])
    assert torch.equal(named["input"], batches()[0])  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="has no tensor"):
        inputs_of(mlp(), 8, [Batch((), {"flag": True})])


def test_output_errors_are_relative_and_without_padding() -> None:
    model = nn.Linear(4, 4, bias=False)
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with torch.no_grad():
        error = OutputError(model, [Batch((x,), {}, (mask,))])
        assert error() == 0
        wanted = model(x)[mask]
        model.weight *= 1.1
        expected = (model(x)[mask] - wanted).square().sum() / wanted.square().sum()
        assert error() == pytest.approx(float(expected), rel=1e-4)
        assert error() == pytest.approx(0.01, rel=1e-4)


def test_output_errors_of_language_models_are_divergences() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)).eval()
    ids = torch.randint(20, (2, 5))
    with torch.no_grad():
        error = OutputError(model, [Batch((), {"input_ids": ids, "labels": ids})])
        p = model(ids).logits.flatten(0, 1).double().softmax(-1)
        model.transformer.h[0].mlp.c_fc.weight *= 5
        q = model(ids).logits.flatten(0, 1).double().softmax(-1)
        expected = (p * (p / q).log()).sum(-1).mean()
        assert error() == pytest.approx(float(expected), rel=1e-3)


def test_first_tensor() -> None:
    x = torch.ones(2, 3)
    assert first_tensor(x) is x
    assert first_tensor((torch.tensor(1.0), x)) is x
    assert first_tensor({"loss": torch.tensor(1.0), "y": x}) is x
    with pytest.raises(UsageError, match="returns no tensor"):
        first_tensor("text")
