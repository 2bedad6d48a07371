"""Gradients of groups, against finite differences and one example at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import bert_batches, mlp
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import Batch, read_calibration
from sparse_engine.pruning.gradients import Loss, group_gradients, make_loss
from sparse_engine.pruning.gradients.groups import _of_batch
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.unrolled import unrolled
from sparse_engine.structures import Site, find_sites

MLP_SITE = Site("0", "unit", 10, {"0": torch.arange(20) // 2}, {"2": torch.arange(20) // 2})


class SumOfCubes(Loss):
    """The loss of a batch is the sum of those of its rows, whichever rows there are."""

    adds_up = True

    def compute(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Any:
        with batch.naming_errors(model):
            output = model(*batch.args, **batch.kwargs)
        x = output if isinstance(output, Tensor) else output[0]
        mask = batch.mask_of(x)
        return ((x if mask is None else x[mask]) + 1).pow(3).sum()


class Apart(SumOfCubes):
    adds_up = False


def gradients(
    model: nn.Module, sites: list[Site], items: Any, loss: Loss, per_example: bool
) -> dict[str, Tensor]:
    with unrolled(model), torch.no_grad():
        batches = read_calibration(model, items, False)
        return group_gradients(model, sites, batches, loss, per_example, 0, Progress(None, 1))


def by_differences(model: nn.Module, site: Site, items: Any) -> Tensor:
    """The derivatives by central differences, float64 [batches, groups]."""
    step = 1e-4
    batches = read_calibration(model, items, False)
    found = torch.zeros(len(batches), site.groups, dtype=torch.float64)
    for group in range(site.groups):
        losses = []
        for sign in (1, -1):
            for name, groups in site.readers.items():
                weight: Any = model.get_submodule(name).weight
                weight.data[:, groups == group] *= 1 + sign * step
            losses.append(
                [SumOfCubes().compute(model, b, torch.Generator()).item() for b in batches]
            )
            for name, groups in site.readers.items():
                weight = model.get_submodule(name).weight
                weight.data[:, groups == group] /= 1 + sign * step
        above, below = torch.tensor(losses, dtype=torch.float64)
        found[:, group] = (above - below) / (2 * step)
    return found


def test_derivatives_of_batches_are_those_of_finite_differences() -> None:
    model = mlp().double().eval()
    items = [torch.randn(6, 12, dtype=torch.float64) for _ in range(3)]
    found = gradients(model, [MLP_SITE], items, SumOfCubes(), False)["0"]
    expected = by_differences(model, MLP_SITE, items)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    rows = gradients(model, [MLP_SITE], items, SumOfCubes(), True)["0"]
    assert rows.shape == (18, 10)
    torch.testing.assert_close(rows.view(3, 6, 10).sum(1), found)


def test_examples_in_one_pass_and_one_by_one() -> None:
    model = bert().double().eval()
    sites = find_sites(model, ("head", "unit"))
    together = gradients(model, sites, bert_batches(), SumOfCubes(), True)
    apart = gradients(model, sites, bert_batches(), Apart(), True)
    for site in sites:
        ours, theirs = together[site.name], apart[site.name]
        assert ours.shape == (16, site.groups)
        # Merged batches have another order.
        for values in (ours, theirs):
            values.copy_(values[values[:, 0].argsort()])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    batches = gradients(model, sites, bert_batches(), SumOfCubes(), False)
    for site in sites:
        total = apart[site.name].sum(0)
        torch.testing.assert_close(batches[site.name].sum(0), total, rtol=1e-4, atol=1e-4)
        expected = by_differences(model, site, bert_batches())
        torch.testing.assert_close(
            batches[site.name].double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max()
        )


def test_a_layer_that_mixes_rows_is_run_row_by_row() -> None:
    """An input of another first dimension cannot have a factor for each row."""

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = self.up(x).tanh().transpose(0, 1)
            found: Tensor = self.down(hidden).transpose(0, 1)
            return found

    model = TimeFirst().double()
    site = Site("up", "unit", 6, {"up": torch.arange(6)}, {"down": torch.arange(6)})
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    items = [{"x": x, "attention_mask": torch.ones(3, 5, dtype=torch.long)}]
    found = gradients(model, [site], items, SumOfCubes(), True)["up"]
    expected = gradients(model, [site], items, Apart(), True)["up"]
    assert found.shape == (3, 6)
    torch.testing.assert_close(found, expected)


def test_input_of_one_dimension() -> None:
    model = mlp().eval()
    with unrolled(model), torch.no_grad():
        batch = Batch((torch.randn(12),), {})
        slopes = _of_batch(model, [MLP_SITE], batch, 1, SumOfCubes(), 0)["0"]
    assert slopes.shape == (1, 10)
    assert slopes.any()


def test_refusals() -> None:
    model = mlp().eval()
    unread = Site("0", "unit", 20, {"0": torch.arange(20)}, {"2": torch.arange(20)})
    model[2].weight.data.zero_()
    model[2].bias.data.zero_()
    items = [torch.randn(6, 12)]
    with pytest.raises(UsageError, match="zero for all groups of 0"):
        gradients(model, [unread], items, SumOfCubes(), False)
    with pytest.raises(UsageError, match="float16"):
        gradients(mlp().half(), [unread], items, make_loss(None, []), False)
