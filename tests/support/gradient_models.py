"""Small models whose gradients the tests compute by hand, and the statistics that are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration import Batch, read_calibration
from sparse_engine.pruning.gradients import (
    GradientStatistics,
    LayerTokens,
    make_loss,
    output_gradients,
)
from sparse_engine.pruning.method import make_method
from sparse_engine.pruning.plan import Plan, make_plan
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.statistics.dense_weights import DenseWeights
from sparse_engine.pruning.statistics.needs import Statistic
from sparse_engine.pruning.unrolled import unrolled


class Attention(nn.Module):
    """Self-attention of torch and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.attention(x, x, x, need_weights=False)[0])
        return found


class Recurrent(nn.Module):
    """Two layers of an LSTM, the second in both directions of time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(8, 6, batch_first=True)
        self.second = nn.LSTM(6, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x)[0])[0]
        return found


class Convolution(nn.Module):
    """A convolution with two groups of channels, then one over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(8, 6, 3, groups=2)
        self.mixing = nn.Conv1d(6, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.mixing(self.grouped(x.transpose(1, 2)).relu())
        return found


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(x).tanh())
        return found


def mlp() -> nn.Sequential:
    """The ReLU overwrites the output of the first layer."""
    return nn.Sequential(nn.Linear(8, 7), nn.ReLU(inplace=True), nn.Linear(7, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "attention": Attention,
    "lstm": Recurrent,
    "conv1d": Convolution,
    "tied": Tied,
}


def model_of(name: str) -> nn.Module:
    """The model of this name, the same each time, in evaluation mode."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def items(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Inputs [batch, tokens, 8], and targets [batch] of another number of rows each time."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2 + i, 7, 8, generator=generator), torch.randn(2 + i, generator=generator))
        for i in range(count)
    ]


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss that depends on all outputs, for `loss=`."""
    x, y = batch
    return (model(x).flatten(1).square().mean(1) - y).square().mean()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights [out, in] by the names of the unrolled layers."""
    with unrolled(model):
        return {layer.name: layer.weight.detach().clone() for layer in plan_of(model).layers}


def plan_of(model: nn.Module) -> Plan:
    """A plan of all layers of an unrolled model."""
    return make_plan(model, lambda module, name: True)


@contextmanager
def prepared(model: nn.Module, calibration: Any, loss: Any) -> Iterator[tuple[Any, ...]]:
    """An unrolled model with its plan, batches, dense weights and loss."""
    with unrolled(model), torch.no_grad():
        batches: list[Batch] = read_calibration(model, calibration, loss is not None)
        plan = plan_of(model)
        yield model, plan.layers, batches, DenseWeights(plan.layers), make_loss(loss, batches)


def outputs_of(
    model: nn.Module, calibration: Any, loss: Any = None
) -> list[dict[str, LayerTokens]]:
    """What `output_gradients` yields for all layers."""
    with prepared(model, calibration, loss) as arguments:
        return list(output_gradients(*arguments))


def gradients_by_hand(
    name: str, calibration: list[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> list[dict[str, Tensor]]:
    """For each item the gradients in float64 of torch's own modules, by unrolled name.

    Unrolling is linear in the weights: the gradient is put in the place of the weight, and read
    like one.
    """
    found = []
    for item in calibration:
        model = model_of(name).double()
        x, y = item
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(
            loss(model, (x.double(), y.double())), list(parameters.values())
        )
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.copy_(gradient)
        found.append(weights(model))
    return found


def statistics_of(
    model: nn.Module,
    calibration: Any,
    criterion: str,
    loss: Any = None,
    overrides: Any = (),
) -> dict[str, dict[Statistic, Tensor]]:
    """What `GradientStatistics` collects for all layers, whose gradient may be zero."""
    method = make_method(0.5, "element", criterion, None, "uniform", True, overrides)
    with prepared(model, calibration, loss) as (_, layers, batches, dense, made):
        progress = Progress(None, 1)
        found = GradientStatistics(model, layers, batches, dense, made, method, 0, progress)
        return {name: x for turn in found._turns for name, x in found._collect(turn).items()}
