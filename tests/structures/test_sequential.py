"""Units and filters of nn.Sequential: cut models against rows and columns taken by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def kept_of(report: se.PruneReport) -> dict[str, Tensor]:
    return {site.name: torch.tensor(site.kept) for site in report.sites}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 40),
        nn.BatchNorm1d(40),
        nn.PReLU(40),
        nn.Dropout(0.1),
        nn.Sequential(nn.Linear(40, 30), nn.PReLU(), nn.Sequential(nn.Linear(30, 20, bias=False))),
        nn.ReLU(),
        nn.Linear(20, 5),
    )
    return with_statistics(model, torch.randn(64, 12))


def with_statistics(model: nn.Sequential, x: Tensor) -> nn.Sequential:
    """Norms with means, variances and scales of their own."""
    model.train()
    model(x * 3 + 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.PReLU):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.2, 1.5)
    return model.eval()


def linear(x: Tensor, layer: Any, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The layer with some of its rows and columns."""
    weight, bias = layer.weight, layer.bias
    if columns is not None:
        weight = weight[:, columns]
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    y = x @ weight.T
    return y if bias is None else y + bias


def normed(x: Tensor, norm: Any, kept: Tensor) -> Tensor:
    """A batch norm of some channels; they are the second dimension."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    mean, variance, weight, bias = (
        t[kept].view(shape) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


@torch.inference_mode()
def test_units_of_a_chain_of_linear_layers() -> None:
    model = mlp()
    dense = copy.deepcopy(model)
    kept = kept_of(se.prune(model, 0.3, se.Unit(keep=1)))
    assert {name: len(units) for name, units in kept.items()} == {"0": 28, "4.0": 21, "4.2.0": 14}
    x = torch.randn(9, 12)
    a, b, c = kept["0"], kept["4.0"], kept["4.2.0"]
    y = normed(linear(x, dense[0], a, None), dense[1], a)
    y = torch.where(y > 0, y, y * dense[2].weight[a])
    y = linear(y, dense[4][0], b, a)
    y = torch.where(y > 0, y, y * dense[4][1].weight)
    y = linear(linear(y, dense[4][2][0], c, b).relu(), dense[6], None, c)
    torch.testing.assert_close(model(x), y, **TIGHT)
    assert (model[1].num_features, model[2].num_parameters) == (28, 28)


def convolutions(pool: nn.Module | None = None, length: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(6, 20, 3, padding=1, stride=2),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(20, 10, 2, dilation=2, padding="same", padding_mode="circular", bias=False),
        nn.PReLU(10),
        nn.AvgPool1d(1) if pool is None else pool,
        nn.Flatten(),
        nn.BatchNorm1d(10 * length),
        nn.Linear(10 * length, 30),
        nn.Tanh(),
        nn.Linear(30, 4),
    )
    return with_statistics(model, torch.randn(64, 6, 20))


def convolved(x: Tensor, conv: Any, rows: Tensor | None, channels: Tensor | None) -> Tensor:
    """The convolution with some of its channels."""
    weight, bias = conv.weight, conv.bias
    weight = weight if rows is None else weight[rows]
    bias = bias if bias is None or rows is None else bias[rows]
    weight = weight if channels is None else weight[:, channels]
    made = nn.Conv1d(
        weight.shape[1],
        weight.shape[0],
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
    )
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made(x)


@pytest.mark.parametrize(
    ("pool", "length"),
    [(None, 5), (nn.AdaptiveAvgPool1d(1), 1), (nn.AdaptiveMaxPool1d(2), 2)],
    ids=["flatten", "global", "adaptive"],
)
@torch.inference_mode()
def test_filters_and_units_of_convolutions(pool: nn.Module | None, length: int) -> None:
    model = convolutions(pool, length)
    dense: Any = copy.deepcopy(model)
    kept = kept_of(se.prune(model, 0.3, [se.Filter(), se.Unit(keep=2)], seed=1))
    assert {name: len(left) for name, left in kept.items()} == {"0": 14, "4": 7, "9": 21}
    x = torch.randn(5, 6, 20)
    a, b, c = kept["0"], kept["4"], kept["9"]
    features = (b[:, None] * length + torch.arange(length)).flatten()
    y = dense[3](normed(convolved(x, dense[0], a, None), dense[1], a).relu())
    y = convolved(y, dense[4], b, a)
    y = torch.where(y > 0, y, y * dense[5].weight[b, None])
    y = normed(dense[6](y).flatten(1), dense[8], features)
    y = linear(linear(y, dense[9], c, features).tanh(), dense[11], None, c)
    torch.testing.assert_close(model(x), y, **TIGHT)
    assert (model[4].in_channels, model[4].out_channels) == (14, 7)


def test_units_of_flattened_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).eval()
    dense = copy.deepcopy(model)
    (kept,) = kept_of(se.prune(model, 0.5, se.Unit(keep=1))).values()
    assert model[3].in_features == 12
    columns = (torch.arange(3)[:, None] * 8 + kept).flatten()
    x = torch.randn(4, 3, 6)
    y = linear(linear(x, dense[0], kept, None).relu().flatten(1), dense[3], None, columns)
    torch.testing.assert_close(model(x), y, **TIGHT)


@pytest.mark.parametrize("make", [mlp, convolutions])
def test_a_cut_model_trains_copies_loads_and_is_pruned_further(make: Any) -> None:
    model = make()
    x = torch.randn(8, 12) if make is mlp else torch.randn(8, 6, 20)
    calibration = [torch.randn(16, *x.shape[1:]) for _ in range(4)]
    structures = [se.Unit(keep=1)] if make is mlp else [se.Filter(), se.Unit(keep=1)]
    se.prune(model, 0.3, structures, "obs", recovery="least_squares", calibration=calibration)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(x), model(x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.load_state_dict(model.state_dict())
    torch.testing.assert_close(copied(x), model(x))
    optimizer = torch.optim.SGD(copied.train().parameters(), 0.01)
    copied(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in copied.parameters())
    optimizer.step()
    se.prune(model, 0.8)
    before = model(x)
    report = se.sparsify_(model, "csr")
    assert any(row.format == "csr" for row in report.rows)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def refuse(model: nn.Module, message: str, granularity: Any = "unit") -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=message):
        se.prune(model, 0.3, granularity)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_is_in_the_way_is_named() -> None:
    a, b = (lambda: nn.Linear(32, 32)), (lambda: nn.Conv1d(8, 8, 3))
    for between in (nn.LayerNorm(32), nn.Softmax(-1), nn.MaxPool1d(2), nn.BatchNorm1d(16)):
        refuse(nn.Sequential(a(), between, a()), f"0 stays, 1 is a {type(between).__name__}")
    for between in (nn.GroupNorm(2, 8), nn.Linear(9, 9), nn.Flatten(0), nn.Upsample(2)):
        refuse(
            nn.Sequential(b(), between, b()), f"0 stays, 1 is a {type(between).__name__}", "filter"
        )
    refuse(nn.Sequential(b(), nn.Conv1d(8, 8, 1, groups=2)), "1 has 2 groups", "filter")
    refuse(nn.Sequential(nn.Conv1d(8, 8, 1, groups=8), b()), "0 has 8 groups", "filter")
    # Where positions follow channels, the norm after a linear layer is one of the channels.
    mixed = nn.Sequential(b(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    refuse(mixed, "1 stays, 2 is a BatchNorm1d")
    hooked = nn.Sequential(a(), nn.ReLU(), a())
    hooked[1].register_forward_hook(lambda module, args, output: output.flip(-1))
    refuse(hooked, "0 stays, 1 has forward hooks")
    with pytest.raises(UsageError, match=r"0\.weight of a LazyLinear has no shape"):
        se.prune(nn.Sequential(nn.LazyLinear(32), nn.ReLU(), a()), 0.3, "unit")


def test_modules_that_run_twice_are_refused() -> None:
    layer = nn.Linear(32, 32)
    refuse(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(32, 32)), "share a weight")
    outside = nn.Sequential(nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 8)), nn.Flatten(0), layer)
    refuse(outside, "0.0 and 2 share a weight")


def test_weight_norm_is_folded_in() -> None:
    torch.manual_seed(0)
    normed_layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 32))
    model = nn.Sequential(normed_layer, nn.ReLU(), nn.Linear(32, 4)).eval()
    weight = model[0].weight.detach().clone()
    (kept,) = kept_of(se.prune(model, 0.25, se.Unit(keep=1))).values()
    torch.testing.assert_close(model[0].weight, weight[kept])


def test_a_scale_for_all_and_instance_norms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.InstanceNorm1d(8, affine=True), nn.PReLU(), nn.Conv1d(8, 2, 1)
    ).eval()
    model[1].weight.data.uniform_(0.5, 2)
    dense = copy.deepcopy(model)
    (kept,) = kept_of(se.prune(model, 0.5, "filter")).values()
    dense[3].weight.data[:, [i for i in range(8) if i not in kept]] = 0
    x = torch.randn(2, 3, 9)
    torch.testing.assert_close(model(x), dense(x), **TIGHT)
    assert model[2].num_parameters == 1
