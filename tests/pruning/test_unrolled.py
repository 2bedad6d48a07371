"""Unrolled modules share memory with their layers, and are as before afterwards."""

from __future__ import annotations

import pytest
import torch
from expert_models import experts
from torch import Tensor, nn
from unrolled_modules import CELLS, attention, conv

import sparse_engine as se
from sparse_engine.nn import SparseConv1d
from sparse_engine.pruning.criteria import Criterion, Inputs
from sparse_engine.pruning.unrolled import unrolled


def modules() -> list[nn.Module]:
    return [
        nn.LSTM(8, 12, bidirectional=True),
        CELLS["gru"](),
        attention("plain"),
        attention("all"),
        conv("groups"),
        experts("gpt_oss"),
    ]


@pytest.mark.parametrize("index", range(6))
def test_everything_is_as_it_was(index: int) -> None:
    model = nn.Sequential(modules()[index])
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    names = [name for name, _ in model.named_parameters()]
    held = dict(model[0].__dict__)
    children = list(dict(model.named_modules()))
    with unrolled(model), torch.no_grad():
        total = sum(p.numel() for p in model.parameters())
        addresses = {p.data_ptr() for p in model.parameters()}
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
    assert [name for name, _ in model.named_parameters()] == names
    assert list(dict(model.named_modules())) == children
    assert model[0].__dict__ == held
    assert total == sum(p.numel() for p in model.parameters())  # nothing twice
    assert {p.data_ptr() for p in model.parameters()} <= addresses
    for name, parameter in model.named_parameters():
        if "weight" in name or name.endswith("proj"):
            assert not parameter.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_writes_reach_parameters_of_any_layout(dtype: torch.dtype) -> None:
    for layout in ("plain", "transposed"):
        layer = conv("plain").to(dtype)
        if layout == "transposed":
            layer.weight = nn.Parameter(
                layer.weight.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0)
            )
            assert not layer.weight.is_contiguous()
        address, weight = layer.weight.data_ptr(), layer.weight
        report = se.prune(nn.Sequential(layer), 0.5)
        assert [row.name for row in report.layers] == ["0.linears.0"]
        assert layer.weight is weight
        assert weight.data_ptr() == address
        assert weight.requires_grad
        assert int((weight == 0).sum()) == weight.numel() // 2
        attend = attention("plain", dtype)
        address = attend.in_proj_weight.data_ptr()
        se.prune(nn.Sequential(attend), 0.5)
        assert attend.in_proj_weight.data_ptr() == address
        for part in attend.in_proj_weight.chunk(3):
            assert int((part == 0).sum()) == part.numel() // 2


def test_shared_weights_are_pruned_once() -> None:
    one, two = attention("plain"), attention("plain")
    two.in_proj_weight = one.in_proj_weight
    a, b = conv("plain"), conv("same")
    b = nn.Conv1d(8, 12, 3, padding="same")
    b.weight = a.weight
    report = se.prune(nn.ModuleList([one, two, a, b, one]), 0.5)
    names = [row.name for row in report.layers]
    assert "0.q_proj" in names
    assert "1.q_proj" not in names
    assert "2.linears.0" in names
    assert "3.linears.0" not in names
    assert two.in_proj_weight is one.in_proj_weight


def test_blocks_of_a_convolution_are_blocks_of_its_sparse_twin() -> None:
    layer = nn.Conv1d(8, 16, 3, groups=2)
    report = se.prune(nn.Sequential(layer), 0.5, "4x4")
    assert [row.shape for row in report.layers] == [(8, 12), (8, 12)]
    for weight, part in zip(
        layer.weight.detach().flatten(1).chunk(2),
        SparseConv1d.from_dense(layer, "bsr:4x4").linears,
        strict=True,
    ):
        assert torch.equal(part.to_dense().weight, weight)
        tiles = weight.view(2, 4, 3, 4).transpose(1, 2).flatten(2).count_nonzero(-1)
        assert sorted(tiles.flatten().tolist()) == [0, 0, 0, 16, 16, 16]


class Watch(Criterion):
    """Magnitude that records the norms of inputs, by the shape of the weight."""

    name = "watch"
    needs = ("norms",)

    def __init__(self) -> None:
        self.norms: dict[torch.Size, Tensor] = {}

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.norms is not None
        self.norms[weight.shape] = inputs.norms
        return weight.square()


def test_steps_count_to_the_end_of_every_batch() -> None:
    """Also if later batches are longer than the first one."""
    torch.manual_seed(0)
    network = nn.LSTM(4, 6)
    batches = [torch.randn(length, 3, 4) for length in (2, 7, 5)]
    with torch.no_grad():
        before = torch.cat([network(x)[0][:-1].flatten(0, 1) for x in batches])
    watch = Watch()
    se.prune(nn.Sequential(network), 0.5, criterion=watch, calibration=batches)
    torch.testing.assert_close(watch.norms[torch.Size([24, 6])], before.norm(dim=0))
    everything = torch.cat([x.flatten(0, 1) for x in batches])
    torch.testing.assert_close(watch.norms[torch.Size([24, 4])], everything.norm(dim=0))


def test_statistics_of_a_convolution_are_those_of_its_windows() -> None:
    layer, watch = nn.Conv1d(4, 6, 3, groups=2, stride=2), Watch()
    x = torch.randn(2, 4, 9)
    se.prune(nn.Sequential(layer), 0.5, criterion=watch, calibration=[x])
    windows = x[:, 2:].unfold(2, 3, 2).transpose(1, 2).flatten(2).flatten(0, 1)  # of group 1
    torch.testing.assert_close(watch.norms[torch.Size([3, 6])], windows.norm(dim=0))
