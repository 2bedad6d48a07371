"""Segments of models with several stacks, with experts, and with layers that run sometimes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pruning_models import of
from torch import Tensor, nn

from sparse_engine.pruning import prune, zeros
from sparse_engine.pruning.calibration import read_calibration
from sparse_engine.pruning.plan import make_plan
from sparse_engine.pruning.statistics.capture import Captured
from sparse_engine.pruning.statistics.collector import _dense_inputs
from sparse_engine.pruning.statistics.segments import find_segments
from sparse_engine.pruning.unrolled import unrolled

WIDTH = 10


class StackLayer(nn.Module):
    """x + down(relu(up(x) + cross(memory)))."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 14), nn.Linear(14, WIDTH)
        self.cross = nn.Linear(WIDTH, 14) if reads else None

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        inner = self.up(x)
        if self.cross is not None and memory is not None:
            inner = inner + self.cross(memory).mean(1, keepdim=True)
        return x + self.down(inner.relu())


class Pair(nn.Module):
    """An encoder and a decoder, with layers before, between and after them."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.ModuleList(StackLayer(True) for _ in range(3))
        self.encoder = nn.ModuleList(StackLayer() for _ in range(2))
        self.first, self.bridge, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.first(x).tanh()
        for layer in self.encoder:
            x = layer(x)
        memory = self.bridge(x)
        for layer in self.decoder:
            y = layer(y, memory)
        return self.last(y)


def pair() -> Pair:
    torch.manual_seed(0)
    return Pair().eval()


def pairs(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(4, 6, WIDTH, generator=generator),
            torch.randn(4, 5, WIDTH, generator=generator),
        )
        for _ in range(count)
    ]


def everything(module: nn.Module, name: str) -> bool:
    return True


def without_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make prune() run the whole model for every group."""

    def changed(model: nn.Module, *arguments: Any) -> Any:
        return replace(make_plan(model, *arguments), stacks=[])

    monkeypatch.setattr(zeros, "make_plan", changed)


def segments(model: nn.Module, calibration: list[Any], filter_fn: Any = None) -> list[str]:
    with unrolled(model) as opened, torch.no_grad():
        plan = make_plan(opened, filter_fn)
        batches = read_calibration(opened, calibration)
        return [s.module for s in find_segments(opened, plan, batches)]


def test_stacks_are_segments_where_they_run() -> None:
    encoder, decoder = (
        [f"{name}.{i}" for i in range(count)] for name, count in (("encoder", 2), ("decoder", 3))
    )
    assert segments(pair(), pairs(), everything) == ["", *encoder, "", *decoder, ""]
    some = segments(pair(), pairs(), lambda module, name: name in ("decoder.1.up", "encoder.0.up"))
    assert some == ["encoder.0", "decoder.1"]


def test_layers_in_a_sequential_are_a_stack() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(StackLayer(), StackLayer()))
    x = [batch[0] for batch in pairs()]
    assert segments(model, x, everything) == ["", "1.0", "1.1"]


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments", [{"criterion": "wanda"}, {"criterion": "wanda", "recovery": "least_squares"}]
)
def test_stacks_give_what_the_whole_model_gives(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = [pair(), pair()]
    for net in nets:
        prune(net, 0.5, calibration=pairs(), filter_fn=everything, **arguments)
        without_stacks(monkeypatch)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def ids(*shape: int) -> Tensor:
    return torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(sum(shape)))


def calibration_of(architecture: str) -> list[dict[str, Tensor]]:
    texts = {"input_ids": ids(3, 9), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    generator = torch.Generator().manual_seed(0)
    if architecture == "clip":
        return [texts | {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}]
    if architecture == "whisper":
        features = torch.randn(2, 8, 64, generator=generator)
        return [{"input_features": features, "decoder_input_ids": ids(2, 7)}]
    return [texts | {"decoder_input_ids": ids(3, 7)}]


STACKS = {
    "bart": ["model.encoder.layers", "model.decoder.layers"],
    "marian": ["model.encoder.layers", "model.decoder.layers"],
    "whisper": ["model.encoder.layers", "model.decoder.layers"],
    "clip": ["text_model.encoder.layers", "vision_model.encoder.layers"],
}


@pytest.mark.parametrize("architecture", STACKS)
def test_two_stacks_of_a_known_model_run_layer_by_layer(architecture: str) -> None:
    found = segments(of(architecture), calibration_of(architecture))
    walked = [module.rpartition(".")[0] for module in found if module]
    assert sorted(walked) == sorted(2 * STACKS[architecture])


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["t5", *STACKS])
def test_every_stack_is_repaired(architecture: str) -> None:
    dense, batches = of(architecture).eval(), calibration_of(architecture)
    model = copy.deepcopy(dense)
    report = prune(model, 0.5, criterion="sparsegpt", recovery="least_squares", calibration=batches)
    assert report.pruned_multiply_adds > 0.7
    for row in report.layers:
        assert row.sparsity == pytest.approx(0.5, abs=0.01)
        assert row.error_after is not None
        assert row.error_before is not None
        assert row.error_after <= row.error_before
    cut = copy.deepcopy(dense)
    prune(cut, 0.5)
    whole, after, before = (net(**batches[0])[0] for net in (dense, model, cut))
    assert (after - whole).norm() < (before - whole).norm()


class Mixture(nn.Module):
    """Experts of which each runs only if a token chooses it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for i, layer in enumerate(self.experts):
            if len(x[expert == i]):
                y[expert == i] = layer(x[expert == i])
        return y


def test_an_expert_may_run_first_in_a_later_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(40, WIDTH, generator=generator), torch.full((40,), expert))
        for expert in (2, 0, 1)
    ]
    report = prune(
        Mixture(), 0.5, recovery="least_squares", calibration=batches, filter_fn=everything
    )
    assert {row.name for row in report.layers} == {f"experts.{i}" for i in range(3)}
    assert all(row.error_after is not None for row in report.layers)
    assert report.unseen == []


@pytest.mark.parametrize("criterion", ["sparsegpt", "fisher"])
@pytest.mark.parametrize("allocator", ["uniform", "lamp"])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude_and_named(
    allocator: str, criterion: str
) -> None:
    torch.manual_seed(0)
    model = Mixture()
    by_magnitude = copy.deepcopy(model)
    batches = [(torch.randn(40, WIDTH), torch.arange(40) % 2)]
    report = prune(
        model,
        0.5,
        criterion=criterion,
        recovery="least_squares",
        calibration=batches,
        filter_fn=everything,
        allocator=allocator,
    )
    assert report.unseen == ["experts.2"]
    assert report.warnings == ["no calibration token reached experts.2: pruned by magnitude alone"]
    assert report.sparsity == pytest.approx(0.5)
    if allocator == "uniform":
        prune(by_magnitude, 0.5, filter_fn=everything)
        assert torch.equal(model.experts[2].weight, by_magnitude.experts[2].weight)
        assert not torch.equal(model.experts[1].weight, by_magnitude.experts[1].weight)


class Idle(nn.Module):
    """A layer that never runs, beside two that do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.idle = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y


@pytest.mark.parametrize("allocator", ["uniform", "lamp", "raw", "owl"])
def test_a_layer_that_never_runs_has_no_share(allocator: str) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(40, WIDTH)]
    report = prune(
        Idle(),
        0.5,
        criterion="wanda",
        allocator=allocator,
        calibration=batches,
        filter_fn=everything,
    )
    assert [row.name for row in report.layers] == ["a", "b"]
    assert report.sparsity == pytest.approx(0.5, abs=1 / WIDTH**2)
    assert "idle did not run on the calibration inputs: left as it was" in report.warnings


def test_a_layer_that_is_no_expert_must_run_in_some_batch() -> None:
    class Dropped(nn.Module):
        """A layer is sometimes skipped, as with LayerDrop."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(StackLayer() for _ in range(3))

        def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
            for i, layer in enumerate(self.layers):
                x = x if i == int(skipped[0]) else layer(x)
            return x

    x = pairs(1)[0][0]
    batches = [(x, torch.tensor([1])), (x, torch.tensor([2]))]
    report = prune(Dropped(), 0.5, recovery="least_squares", calibration=batches)
    assert len(report.layers) == 6
    report = prune(Dropped(), 0.5, recovery="least_squares", calibration=batches[:1])
    assert len(report.layers) == 4
    assert [left.name for left in report.left] == ["layers.1.up", "layers.1.down"]
    assert report.warnings == [
        "layers.1.up and 1 more did not run on the calibration inputs: left as it was"
    ]


def test_tokens_of_an_expert_are_compared_with_themselves() -> None:
    dense = Captured([torch.tensor([[1.0], [2.0]])], [torch.tensor([True, True, False])])
    pruned = Captured([torch.tensor([[20.0], [30.0]])], [torch.tensor([False, True, True])])
    # Token 1 went to the expert in both models, token 2 only in the pruned one.
    assert torch.equal(_dense_inputs(dense, pruned, 0, True), torch.tensor([[2.0], [30.0]]))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_fused_experts_are_repaired(architecture: str) -> None:
    dense = of(architecture).eval()
    batches = [{"input_ids": ids(4, 50)}]
    errors = []
    for arguments in (
        {},
        {"criterion": "wanda", "recovery": "least_squares", "calibration": batches},
    ):
        model = copy.deepcopy(dense)
        report = prune(model, 0.5, **arguments)
        assert sum("experts." in row.name for row in report.layers) == 2 * 2 * 4
        output, whole = (net(**batches[0])[0] for net in (model, dense))
        errors.append(float((output - whole).norm()))
    assert errors[1] < 0.8 * errors[0]
