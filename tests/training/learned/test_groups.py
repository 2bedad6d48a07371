"""Groups of weights: sums and factors against loops over single weights."""

from __future__ import annotations

import pytest
import torch
from learned_cases import network
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.pruning.plan import Selection
from sparse_engine.training.layers import TrainedLayer
from sparse_engine.training.learned.find import find_groups
from sparse_engine.training.learned.groups import combined


@pytest.mark.parametrize("granularity", ["element", "4x1", "1x4", "3x4", "row", "column", "8x2"])
def test_tiles_are_those_of_a_loop(granularity: str) -> None:
    model = network()
    [groups] = find_groups(model, granularity, Selection.of(("0",), ()), "test")
    values = model[0].weight.detach()
    block = se.Block(1, 1) if granularity == "element" else se.Block.parse(granularity)
    assert block is not None
    height, width = block.size(10, 7)
    sums, sizes, grid = [], [], torch.zeros(10, 7, dtype=torch.int64)
    for row in range(0, 10, height):
        for column in range(0, 7, width):
            tile = slice(row, row + height), slice(column, column + width)
            grid[tile] = len(sums)
            sums.append(values[tile].sum())
            sizes.append(values[tile].numel())
    torch.testing.assert_close(groups.sums(lambda layer: values), torch.stack(sums))
    assert groups.sizes.tolist() == sizes
    assert groups.weights == 70
    numbers = torch.arange(groups.count)
    [(layer, factor)] = groups.factors(numbers)
    assert layer.name == "0"
    assert torch.equal(factor, grid)


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"lstm": nn.LSTM(3, 4, num_layers=2), "fc": nn.Linear(4, 2)}).double()


def test_units_of_a_recurrent_network_are_those_of_a_loop() -> None:
    model = recurrent()
    found = find_groups(model, "unit(readers='lstm: fc', keep=1)", Selection(), "test")
    assert [own.name for own in found] == ["lstm.hh_l0 (unit)", "lstm.hh_l1 (unit)"]
    lower, upper = (own.whole for own in found)
    parameters = dict(model.named_parameters())

    def values(layer: TrainedLayer) -> Tensor:
        return layer.weight_in(model)

    belongs = unit_masks()
    for own, masks in ((lower, belongs[0]), (upper, belongs[1])):
        expected = [
            sum(parameters[name].detach()[mask].sum() for name, mask in of_unit.items())
            for of_unit in masks
        ]
        torch.testing.assert_close(own.sums(values), torch.stack(expected))  # type: ignore[arg-type]
        counted = [sum(int(mask.sum()) for mask in of_unit.values()) for of_unit in masks]
        assert own.sizes.tolist() == counted
    keep = torch.tensor([True, False, True, True])
    for layer, mask in combined([lower, upper], [keep, keep]):
        removed = torch.zeros_like(parameters[layer.parameter], dtype=torch.bool)
        for site in belongs:
            removed |= site[1].get(layer.parameter, torch.zeros_like(removed))
        assert torch.equal(mask, ~removed), layer.name


def unit_masks() -> list[list[dict[str, Tensor]]]:
    """By site and unit, the weights that belong to it."""
    found = []
    for layer in (0, 1):
        units = []
        for unit in range(4):
            ih = torch.zeros(16, 3 if layer == 0 else 4, dtype=torch.bool)
            hh = torch.zeros(16, 4, dtype=torch.bool)
            for gate in range(4):
                ih[4 * gate + unit] = True
                hh[4 * gate + unit] = True
            hh[:, unit] = True
            reader = torch.zeros(16 if layer == 0 else 2, 4, dtype=torch.bool)
            reader[:, unit] = True
            name = "lstm.weight_ih_l1" if layer == 0 else "fc.weight"
            parts = {f"lstm.weight_ih_l{layer}": ih, f"lstm.weight_hh_l{layer}": hh}
            units.append({**parts, name: reader})
        found.append(units)
    return found


def test_masks_in_training_are_those_of_the_columns_that_read() -> None:
    model = recurrent()
    lower, _ = find_groups(model, "unit(readers='lstm: fc', keep=1)", Selection(), "test")
    keep = torch.tensor([True, False, True, True])
    factors = {layer.name: factor for layer, factor in lower.factors(keep)}
    assert factors.keys() == {"lstm.hh_l0", "lstm.ih_l1"}
    assert all(factor.tolist() == [keep.tolist()] for factor in factors.values())
    assert lower.sizes.tolist() == [32] * 4


def test_the_product_of_a_weight_of_two_units_is_that_of_both() -> None:
    model = recurrent()
    lower, _ = (
        own.whole
        for own in find_groups(model, "unit(readers='lstm: fc', keep=1)", Selection(), "test")
    )
    of_units = torch.tensor([2.0, 3.0, 5.0, 7.0])
    hh = {layer.name: factor for layer, factor in lower.factors(of_units)}["lstm.hh_l0"]
    expected = of_units.repeat(4)[:, None] * of_units[None, :]
    for row in range(16):
        expected[row, row % 4] = of_units[row % 4]
    assert torch.equal(hh, expected)


def test_heads_are_columns_of_the_output_projection() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    [heads] = find_groups(model, "head", Selection(), "test")
    assert [layer.name for layer in heads.layers] == ["self_attn.out_proj"]
    assert sorted(layer.name for layer in heads.whole.layers) == [
        "self_attn.k_proj",
        "self_attn.out_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]
    assert heads.sizes.tolist() == [8 * 4] * 2
    assert heads.whole.sizes.tolist() == [4 * 8 * 4] * 2


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("2:4", "has a sparsity of its own"),
        ("layer", "a mask of a layer is not learned"),
        ("unit(round_to=4)", "leave out round_to"),
        (("unit", "4x1"), "steps of their own"),
    ],
)
def test_groups_without_a_mask_are_refused(granularity: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_groups(network(), granularity, Selection(), "lasso")


def test_a_weight_that_is_not_trained_is_refused() -> None:
    model = network()
    model[2].weight.requires_grad_(False)
    with pytest.raises(UsageError, match=r"2\.weight is not trained"):
        find_groups(model, "element", Selection(), "lasso")
    found = find_groups(model, "element", Selection.of((), ("2",)), "lasso")
    assert "2" not in [own.name for own in found]
