"""find_fit tells from the shapes of stored weights how many groups remain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from uneven_models import MODELS, build, cut_

from sparse_engine.errors import InvalidFileError
from sparse_engine.structures import Shape, Site, find_fit, hollow

Shapes = dict[str, Shape]


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    kinds = (int, float, str, bool)
    return {
        name: {k: v for k, v in vars(module).items() if isinstance(v, kinds)}
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("kind", list(MODELS))
def test_an_empty_model_gets_the_shapes_of_a_cut_one(kind: str, even: bool) -> None:
    built, small = build(kind), build(kind)
    left = cut_(small, even)
    full = {name: site for name, site in left.items() if site}
    empty = hollow(built)
    fit = find_fit(empty, shapes_of(small))
    assert shapes_of(empty) == shapes_of(built)  # nothing has changed yet
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert fit.left.items() <= full.items()
    fit.apply_(empty)
    assert shapes_of(empty) == shapes_of(small)
    assert attributes(empty) == attributes(small)
    empty.load_state_dict(small.state_dict(), strict=True, assign=True)


def test_a_whole_model_needs_no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert")
    monkeypatch.setattr("sparse_engine.structures.fit.find_sites", None)
    assert not find_fit(model, shapes_of(model)).left


def layer(name: str) -> str:
    return f"bert.encoder.layer.0.{name}"


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("attention.self.query.weight", (12, 32), "leaves no whole heads of .*which has 4 of 8"),
        ("attention.self.query.weight", (0, 32), "leaves no whole heads"),
        (
            "attention.output.dense.weight",
            (32, 20),
            "32x20, other tensors leave 4 heads, which are",
        ),
        ("attention.self.value.bias", (16,), "is 16, other tensors leave 4 heads, which are 32"),
        ("intermediate.dense.weight", (0, 32), "leaves no whole units of .*which has 48 of 1"),
        ("output.dense.weight", (32, 0), "is 32x0, other tensors leave 48 units"),
        ("output.dense.weight", (32, 40), "is 32x40, other tensors leave 48 units"),
    ],
)
def test_wrong_shapes_are_refused(name: str, shape: Shape, match: str) -> None:
    model = build("bert")
    shapes = shapes_of(model)
    with pytest.raises(InvalidFileError, match=match) as caught:
        find_fit(model, {**shapes, layer(name): shape})
    assert "\n" not in str(caught.value)
    assert shapes_of(model) == shapes


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("intermediate.dense.weight", (49, 32)),
        ("intermediate.dense.weight", (40, 31)),
        ("intermediate.dense.weight", (40,)),
        ("intermediate.dense.weight", (1 << 62, 1 << 62)),
        ("intermediate.dense.weight", ()),
        ("output.LayerNorm.weight", (16,)),
    ],
)
def test_other_differences_are_left_to_the_caller(name: str, shape: Shape) -> None:
    model = build("bert")
    assert not find_fit(model, {**shapes_of(model), layer(name): shape}).left


def test_sizes_of_a_hostile_config_are_bounded() -> None:
    with torch.device("meta"):
        model = build("bert")
        dense = model.get_submodule(layer("intermediate.dense"))
        dense.weight = nn.Parameter(torch.empty(10**12, 32))
    assert not find_fit(model, {layer("intermediate.dense.weight"): (40, 32)}).left


class Pair(nn.Module):
    """Two linear layers whose outputs a third one reads, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.reader = nn.Linear(3, 8), nn.Linear(3, 6), nn.Linear(15, 2)


def pair_sites(known: bool) -> list[Site]:
    """The sites of both; unless `known`, only the reader belongs to them."""
    none = torch.full((15,), -1)
    sites = []
    for name, count, start in (("first", 4, 0), ("second", 6, 8)):
        rows = torch.arange(count).repeat_interleave(2 if name == "first" else 1)
        columns = none.clone()
        columns[start : start + len(rows)] = rows
        writers = {name: rows} if known else {}
        sites.append(Site(name, "unit", count, writers, {"reader": columns}))
    return sites


def test_a_reader_of_two_sites() -> None:
    shapes = {"first.weight": (6, 3), "first.bias": (6,), "second.weight": (2, 3)}
    shapes |= {"second.bias": (2,), "reader.weight": (2, 9)}
    model = Pair()
    fit = find_fit(model, shapes, sites=pair_sites(known=True))
    assert fit.left == {"first": 3, "second": 2}
    fit.apply_(model)
    assert shapes.items() <= shapes_of(model).items()
    with pytest.raises(InvalidFileError, match="other tensors leave 3 units and 2 units"):
        find_fit(Pair(), {**shapes, "reader.weight": (2, 8)}, sites=pair_sites(known=True))
    with pytest.raises(InvalidFileError, match="how much of first and second remains"):
        find_fit(Pair(), {"reader.weight": (2, 9)}, sites=pair_sites(known=False))


def test_layers_inside_of_modules() -> None:
    """Layers of the unrolled model, as packages name those of recurrent networks."""
    rows, columns = torch.arange(5).repeat(4), torch.arange(5)
    site = Site("lstm", "unit", 5, {"lstm.hh_l0": rows}, {"lstm.hh_l0": columns})
    from sparse_engine.structures.fit import Equation, _of_layers

    assert list(_of_layers([site], {"lstm.hh_l0": (12, 3)}, [0])) == [
        Equation("lstm.hh_l0", (12, 3), 20, 12, {0: 4}),
        Equation("lstm.hh_l0", (12, 3), 5, 3, {0: 1}),
    ]
    padded = list(_of_layers([site], {"lstm.hh_l0": (64, 3)}, [0], {"lstm.hh_l0"}))
    assert padded == [Equation("lstm.hh_l0", (64, 3), 5, 3, {0: 1})]
