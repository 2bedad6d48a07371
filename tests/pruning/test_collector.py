"""Calibration runs: shared inputs, padding, residual streams, stacks that form chains or not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_engine.models import Residual
from sparse_engine.pruning import prune, zeros
from sparse_engine.pruning.calibration import read_calibration
from sparse_engine.pruning.plan import Plan, make_plan
from sparse_engine.pruning.statistics.segments import find_segments


class Add(nn.Module):
    """stream + linear(x)."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        return stream + self.dense(x)


class GatedLayer(nn.Module):
    """x + down(relu(up(x)) * tanh(gate(x))): two layers share an input, one writes to a stream."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.gate = nn.Linear(width, inner, bias=False)
        self.out = Add(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(x).relu() * self.gate(x).tanh(), x)


class Net(nn.Module):
    """A stack of layers; `scale` multiplies between them, `twice` runs the stack a second time."""

    def __init__(
        self, width: int = 10, inner: int = 14, scale: float = 1.0, twice: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GatedLayer(width, inner) for _ in range(3)])
        self.classifier = nn.Linear(width, 3)
        self.scale = scale
        self.twice = twice

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in [*self.layers, *self.layers] if self.twice else self.layers:
            x = layer(x)
            if self.scale != 1:
                x = x * self.scale
        return self.classifier(x)


def make_net(**options: Any) -> Net:
    torch.manual_seed(0)
    return Net(**options).eval()


def inputs(count: int = 6, width: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(width, width, generator=generator)
    return [torch.randn(4, 5, width, generator=generator) @ mix * 0.5 for _ in range(count)]


def residuals_of(net: Net) -> dict[str, Residual]:
    return {f"layers.{i}.out.dense": Residual(f"layers.{i}.out", 1) for i in range(3)}


def with_plan(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Make prune() use a plan with other stacks or residual streams."""

    def changed(model: nn.Module, *arguments: Any) -> Plan:
        return replace(make_plan(model, *arguments), **changes)

    monkeypatch.setattr(zeros, "make_plan", changed)


def seen(net: nn.Module, name: str, batches: list[Tensor], argument: int = 0) -> Tensor:
    """All inputs of a module, [tokens, features]."""
    rows: list[Tensor] = []
    handle = net.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[argument].flatten(0, -2))
    )
    with torch.no_grad():
        for batch in batches:
            net(batch)
    handle.remove()
    return torch.cat(rows).double()


def check_layer(dense: Net, pruned: Net, name: str, batches: list[Tensor], stream: bool) -> None:
    """The weights of one layer must be the ridge fit on their support."""
    old, new = dense.get_submodule(name), pruned.get_submodule(name)
    assert isinstance(old, nn.Linear)
    assert isinstance(new, nn.Linear)
    x, dense_x = seen(pruned, name, batches), seen(dense, name, batches)
    y = dense_x @ old.weight.double().T
    if stream:
        parent = name.rpartition(".")[0]
        y += seen(dense, parent, batches, 1) - seen(pruned, parent, batches, 1)
    mean_x, mean_y = x.mean(0), y.mean(0)
    if old.bias is not None:
        x, y = x - mean_x, y - mean_y
    ridge = 0.01 * float(x.square().sum(0).mean())
    keep = new.weight != 0
    for row, support in enumerate(keep):
        left = torch.cat([x[:, support], ridge**0.5 * torch.eye(int(support.sum())).double()])
        right = torch.cat([y[:, row], ridge**0.5 * old.weight[row, support].double()])
        fitted = torch.linalg.lstsq(left, right[:, None]).solution[:, 0]
        got = new.weight[row, support].double()
        torch.testing.assert_close(got, fitted, rtol=2e-3, atol=2e-3)
    if old.bias is not None:
        bias = old.bias.double() + mean_y - new.weight.double() @ mean_x
        torch.testing.assert_close(new.bias.double(), bias, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"scale": 0.5}], ids=["chain", "no chain"])
@pytest.mark.parametrize("stream", [False, True], ids=["outputs", "streams"])
@torch.no_grad()
def test_every_layer_is_the_compensated_ridge_fit(
    options: dict[str, Any], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = make_net(**options)
    if stream:
        with_plan(monkeypatch, residuals=residuals_of(dense))
    pruned, batches = copy.deepcopy(dense), inputs()
    report = prune(
        pruned, 0.5, criterion="sparsegpt", recovery="least_squares", calibration=batches
    )
    assert [row.sparsity for row in report.layers] == [0.5] * 9
    for i in range(3):
        for part in ("up", "gate", "out.dense"):
            name = f"layers.{i}.{part}"
            check_layer(dense, pruned, name, batches, stream and part == "out.dense")
    assert torch.equal(pruned.classifier.weight, dense.classifier.weight)


@torch.no_grad()
def test_compensation_beats_a_mask_alone_and_streams_beat_outputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense, batches = make_net(width=24, inner=48), inputs(40, 24)
    wanted = torch.cat([dense.layers[2](dense.layers[1](dense.layers[0](x))) for x in batches])

    def error(**arguments: Any) -> float:
        net = copy.deepcopy(dense)
        prune(net, 0.6, calibration=batches, **arguments)
        got = torch.cat([net.layers[2](net.layers[1](net.layers[0](x))) for x in batches])
        return float((got - wanted).norm() / wanted.norm())

    magnitude = error(criterion="magnitude")
    sparsegpt = error(criterion="sparsegpt")
    outputs = error(criterion="sparsegpt", recovery="least_squares")
    with_plan(monkeypatch, residuals=residuals_of(dense))
    streams = error(criterion="sparsegpt", recovery="least_squares")
    assert streams < outputs < sparsegpt < magnitude


@torch.no_grad()
def test_layers_run_alone_give_the_results_of_the_whole_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets = [make_net(), make_net()]
    for net in nets:
        prune(net, 0.6, "2x2", "wanda", recovery="least_squares", calibration=inputs())
        with_plan(monkeypatch, stacks=[])
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def test_trace_sees_chains_and_shared_inputs() -> None:
    def segments(net: Net) -> list[tuple[str, list[list[str]]]]:
        plan = make_plan(net, lambda module, name: True)
        return [
            (s.module, [[layer.name for layer in g.layers] for g in s.groups])
            for s in find_segments(net, plan, read_calibration(net, inputs()))
        ]

    layers = [
        (f"layers.{i}", [[f"layers.{i}.up", f"layers.{i}.gate"], [f"layers.{i}.out.dense"]])
        for i in range(3)
    ]
    assert segments(make_net()) == [*layers, ("", [["classifier"]])]
    for other in (make_net(scale=0.5), make_net(twice=True)):
        whole = [group for _, groups in layers for group in groups]
        assert segments(other) == [("", [*whole, ["classifier"]])]


@torch.no_grad()
def test_a_layer_that_runs_twice_counts_both_runs() -> None:
    dense, batches = make_net(twice=True), inputs()
    pruned = copy.deepcopy(dense)

    def last_only(module: nn.Module, name: str) -> bool:
        return name == "layers.2.out.dense"

    prune(pruned, 0.5, recovery="least_squares", calibration=batches, filter_fn=last_only)
    x = seen(dense, "layers.2.out.dense", batches)
    first, second = x.view(6, 2, 20, 14).unbind(1)
    assert not torch.equal(first, second)
    # The second run of the pruned model reads what the first one changed.
    now = seen(pruned, "layers.2.out.dense", batches).view(6, 2, 20, 14)
    assert torch.equal(now[:, 0], first)
    old, new = dense.layers[2].out.dense, pruned.layers[2].out.dense
    both = x - x.mean(0)
    ridge = 0.01 * float(both.square().sum(0).mean())
    hessian = both.T @ both + ridge * torch.eye(14).double()
    for row, support in enumerate(new.weight != 0):
        rhs = (old.weight[row].double() @ hessian)[support]
        fitted = torch.linalg.solve(hessian[support][:, support], rhs)
        torch.testing.assert_close(new.weight[row, support].double(), fitted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("form", ["keyword", "position"])
def test_padding_is_left_out(form: str) -> None:
    torch.manual_seed(3)
    short, long = torch.randn(1, 3, 10), torch.randn(1, 5, 10)
    padded = torch.cat([torch.cat([short, torch.full((1, 2, 10), 50.0)], 1), long])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"x": padded, "attention_mask": mask} if form == "keyword" else (padded, mask)
    results = []
    for calibration in ([short, long], [batch], [padded]):
        net = make_net()
        prune(net, 0.5, criterion="wanda", recovery="least_squares", calibration=calibration)
        results.append(net.layers[2].out.dense.weight)
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(results[0], results[2], rtol=1e-1, atol=1e-2)


@torch.no_grad()
def test_statistics_without_recovery_are_those_of_the_dense_model() -> None:
    dense, batches = make_net(), inputs()
    pruned = copy.deepcopy(dense)
    prune(pruned, 0.5, criterion="wanda", calibration=batches)
    for name in ("layers.0.up", "layers.2.out.dense"):
        old, new = dense.get_submodule(name), pruned.get_submodule(name)
        score = (old.weight * seen(dense, name, batches).norm(dim=0).float()).abs()
        order = score.argsort(1)[:, : score.shape[1] // 2]
        expected = old.weight.scatter(1, order, 0)
        assert torch.equal(new.weight, expected)
