"""The pattern of a weight's zeros: every kind, odd shapes, and what chance does not make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.formats import Pattern, block_fill

torch.set_num_threads(1)


def blocks(out: int, into: int, rows: int, cols: int, density: float) -> Tensor:
    """Random blocks of rows x cols, cut off at the edges."""
    grid = torch.rand(-(-out // rows), -(-into // cols)) < density
    mask = torch.kron(grid, torch.ones(rows, cols, dtype=torch.bool))[:out, :into]
    return torch.randn(out, into) * mask


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64, 48), (70, 33), (128, 256)])
@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (4, 1), (16, 1), (1, 8), (4, 4), (8, 2)])
def test_blocks(sides: tuple[int, int], shape: tuple[int, int], density: float) -> None:
    torch.manual_seed(0)
    found = Pattern.of_weight(blocks(*shape, *sides, density))
    assert (found.rows, found.cols) == sides
    assert found.fill == 1.0
    assert found.block == ("element" if sides == (1, 1) else f"{sides[0]}x{sides[1]}")


def test_whole_rows_and_columns() -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 21)
    rows, columns = weight.clone(), weight.clone()
    rows[torch.rand(37) < 0.5] = 0
    columns[:, torch.rand(21) < 0.5] = 0
    assert str(Pattern.of_weight(rows)) == "rows"
    assert str(Pattern.of_weight(columns)) == "columns"


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (3, 8), (4, 16)])
def test_keep_n_of_m(keep: int, of: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 64)
    order = torch.rand(24, 64 // of, of).argsort(-1)
    weight = (weight.view(24, -1, of) * (order < keep)).view(24, 64)
    found = Pattern.of_weight(weight)
    assert (found.keep, found.of, str(found)) == (keep, of, f"{keep}:{of}")


def test_a_few_kept_zeros_do_not_hide_a_pattern() -> None:
    torch.manual_seed(0)
    weight = blocks(256, 256, 4, 1, 0.3)
    weight[torch.rand(256, 256) < 0.01] = 0
    found = Pattern.of_weight(weight)
    assert found.block == "4x1"
    assert found.fill == pytest.approx(block_fill(weight, 4, 1))
    assert 0.98 <= found.fill < 1


@pytest.mark.parametrize("density", [0.02, 0.3, 0.7, 0.94])
def test_chance_makes_no_pattern(density: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 128) * (torch.rand(96, 128) < density)
    found = Pattern.of_weight(weight)
    assert (str(found), found.nm) == ("element", "")
    assert found.sparsity == pytest.approx(1 - density, abs=0.02)


def test_without_a_pattern() -> None:
    assert str(Pattern.of_weight(torch.randn(8, 8))) == "dense"
    assert str(Pattern.of_weight(torch.zeros(8, 8))) == "zero"
    assert str(Pattern.of_weight(torch.zeros(0, 8))) == "dense"
    one = torch.zeros(1, 1)
    assert str(Pattern.of_weight(one)) == "zero"
    with pytest.raises(UsageError):
        Pattern.of_weight(torch.zeros(8))
