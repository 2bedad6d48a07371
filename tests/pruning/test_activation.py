"""The activation criterion: the energy of what each output row computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning import Block, prune


def model_and_inputs() -> tuple[nn.Sequential, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 9))
    mean = torch.randn(10)
    return model, [torch.randn(8, 10) * torch.rand(10) + mean for _ in range(3)]


def contributions(model: nn.Sequential, inputs: list[torch.Tensor]) -> torch.Tensor:
    """[tokens, out], what the weights of the first layer compute, without the bias."""
    return torch.cat(inputs).double() @ model[0].weight.detach().double().T


@pytest.mark.parametrize(("rows", "drop"), [(1, 12), (4, 3), (5, 2)])
def test_rows_of_least_energy_go(rows: int, drop: int) -> None:
    model, inputs = model_and_inputs()
    energy = contributions(model, inputs).square().sum(0)
    heads = [energy[i : i + rows].mean() for i in range(0, 24, rows)]
    expected = {int(i) for i in torch.stack(heads).sort().indices[:drop]}
    prune(model, drop / len(heads), Block(rows, "all"), "activation", calibration=inputs)
    removed = (model[0].weight == 0).all(1)
    assert {i // rows for i in removed.nonzero()[:, 0].tolist()} == expected


def test_with_a_bias_that_absorbs_the_mean_only_the_variance_counts() -> None:
    model, inputs = model_and_inputs()
    computed = contributions(model, inputs)
    variance = computed.var(0)
    expected = set(variance.sort().indices[:12].tolist())
    assert expected != set(computed.square().sum(0).sort().indices[:12].tolist())
    before = torch.cat(inputs) @ model[0].weight.detach().T + model[0].bias.detach()
    prune(model, 0.5, "1xall", "activation", "bias", inputs)
    removed = (model[0].weight == 0).all(1)
    assert set(removed.nonzero()[:, 0].tolist()) == expected
    torch.testing.assert_close(model[0].bias[removed], before.mean(0)[removed])


@pytest.mark.parametrize("granularity", ["element", "4x1", "allx1", "2:4"])
def test_parts_of_rows_are_refused(granularity: str) -> None:
    model, inputs = model_and_inputs()
    sparsity = None if granularity == "2:4" else 0.5
    with pytest.raises(UsageError, match=f"scores whole output rows, not {granularity}"):
        prune(model, sparsity, granularity, "activation", calibration=inputs)
