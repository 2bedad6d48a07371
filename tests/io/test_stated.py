"""Packages of plain modules that were cut with stated readers, in their full size again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from io_cases import edit_manifest
from torch import Tensor, nn
from whole_models import TextCnn, ids

import sparse_engine as se
from sparse_engine.errors import InvalidFileError
from sparse_engine.io.stated import MOST, readers_in

torch.set_num_threads(1)


class Network(nn.Module):
    """A recurrent network or cell, and a layer that reads its last state."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn: Any = rnn
        self.head = nn.Linear(20 if getattr(rnn, "bidirectional", False) else 10, 4)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.rnn, nn.RNNBase) or hasattr(self.rnn, "num_layers"):
            return self.head(self.rnn(x)[0][-1])
        state: Any = None
        for step in x:
            state = self.rnn(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Chain(nn.Module):
    """Convolutions with a norm between them that no nn.Sequential holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 10, 3), nn.Conv1d(10, 8, 3)
        self.norm, self.out = nn.BatchNorm1d(10), nn.Linear(8 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.norm(self.first(x)).relu()).flatten(1))


RNN = "unit(keep=1, readers='rnn: head')"
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Callable[[], Tensor]]] = {
    "text_cnn": (
        TextCnn,
        ["filter(readers='convs.*: mix')", "unit(readers='mix: classify')"],
        lambda: ids(4, 11),
    ),
    "chain": (
        Chain,
        "filter(readers='first: norm second; second: out')",
        lambda: torch.randn(3, 4, 9),
    ),
    "gru": (
        lambda: Network(nn.GRU(6, 10, 2, bidirectional=True)),
        RNN,
        lambda: torch.randn(5, 3, 6),
    ),
    "lstm_cell": (lambda: Network(nn.LSTMCell(6, 10)), RNN, lambda: torch.randn(5, 3, 6)),
    "gru_cell": (lambda: Network(nn.GRUCell(6, 10)), RNN, lambda: torch.randn(5, 3, 6)),
    "rnn_cell": (lambda: Network(nn.RNNCell(6, 10)), RNN, lambda: torch.randn(5, 3, 6)),
}


def cut(case: str) -> tuple[nn.Module, Any, Tensor]:
    """A cut model, its report and an input."""
    torch.manual_seed(0)
    make, granularity, draw = CASES[case]
    model, x = make().eval().requires_grad_(False), draw()
    return model, se.prune(model, 0.4, granularity, "magnitude"), x


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_full_size_module_is_filled(case: str, zeros: bool, tmp_path: Path) -> None:
    model, report, x = cut(case)
    if zeros:
        se.prune(model, 0.6)
        before = model(x)
        assert se.sparsify_(model, "csr").swapped
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    se.save(model, tmp_path / "package", recipe=report.to_dict())
    loaded = se.load(tmp_path / "package", CASES[case][0]())
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (loaded, model)]
    assert shapes[0] == shapes[1]
    again = copy.deepcopy(loaded)
    torch.testing.assert_close(again(x), loaded(x))


def test_the_steps_of_a_recipe_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = TextCnn().eval().requires_grad_(False), ids(4, 11)
    steps = [
        {"granularity": "filter(readers='convs.*: mix')", "sparsity": 0.5},
        {"granularity": "4x1", "sparsity": 0.5},
    ]
    report = se.prune(model, steps=steps)
    se.save(model, tmp_path / "package", recipe=report.recipe)
    torch.testing.assert_close(se.load(tmp_path / "package", TextCnn())(x), model(x))


def test_without_a_recipe_the_sizes_differ(tmp_path: Path) -> None:
    model, _, _ = cut("text_cnn")
    se.save(model, tmp_path / "package")
    with pytest.raises(InvalidFileError, match=r"convs\.0"):
        se.load(tmp_path / "package", TextCnn())


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("filter(readers='convs.*: nothing')", "recipe does not fit the model: readers of convs"),
        ("filter(readers='convs.*: classify')", "classify reads 64 features"),
        ("filter(readers='nothing.*: mix')", "no linear layer or Conv1d has such a name"),
        ("filter(readers='convs.*')", "recipe cannot be read: filter: readers="),
        ("filter(readers=3)", "recipe cannot be read: "),
        ("filter(readers=__import__('os').sep)", "recipe cannot be read: "),
        (["unit"] * (MOST + 1), f"{MOST + 1} steps or structures, at most {MOST}"),
        ("filter(readers='convs.*: mix', keep=0)", "keep=0 is less than 1"),
    ],
)
def test_recipes_of_hostile_packages(granularity: Any, message: str, tmp_path: Path) -> None:
    model, report, _ = cut("text_cnn")
    folder = se.save(model, tmp_path / "package", recipe=report.to_dict())

    def edit(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["recipe"]["granularity"] = granularity

    edit_manifest(folder, edit)
    full = TextCnn()
    shapes = {name: tensor.shape for name, tensor in full.state_dict().items()}
    with pytest.raises(InvalidFileError) as error:
        se.load(folder, full)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert {name: tensor.shape for name, tensor in full.state_dict().items()} == shapes


@pytest.mark.parametrize(
    "recipe",
    [
        None,
        {},
        {"recipe": []},
        {"recipe": {"steps": 3}},
        {"steps": ["unit", None, {"granularity": {"a": 1}}]},
        {"granularity": "4x1"},
        {"granularity": [1, "element", "unit"]},
    ],
)
def test_what_states_nothing(recipe: Any) -> None:
    assert readers_in(recipe) == {}
