"""The native recurrent network: refused arguments, and the path of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recurrent_cases import dense, sparse

from sparse_engine import _core
from sparse_engine.ops import weight_handle
from sparse_engine.packings import Runs, Strips


def test_bad_native_arguments_are_refused() -> None:
    network = sparse("lstm", dense("lstm"))
    native, x = network.native(1, 9), torch.zeros(3, 9).numpy()
    y, h, c = (torch.zeros(n, 21).numpy() for n in (3, 1, 1))
    for arguments in (
        (x, [], y, [], [h, c]),
        (x, [1, 2], y, [], [h, c]),
        (x, [1, 1], y, [], [h, c]),
        (x, [1, 1, 0], y, [], [h, c]),
        (x, [1, 1, 1], y[:2], [], [h, c]),
        (x, [1, 1, 1], y, [y, c], [h, c]),
        (x, [1, 1, 1], y, [h, y], [h, c]),
        (x, [1, 1, 1], y, [h], [h, c]),
        (x, [1, 1, 1], y, [], [y, c]),
        (x, [1, 1, 1], y, [], [h]),
        (x, [1, 1, 1], y, [], []),
    ):
        with pytest.raises(ValueError, match="recurrent"):
            native.run(*arguments)
    with pytest.raises(TypeError):  # a copy of the final states would be written to
        native.run(x, [1, 1, 1], y, [], [h.astype("float64"), c])


def test_bad_native_networks_are_refused() -> None:
    runs = weight_handle(Runs.from_dense(torch.zeros(64, 9)))
    strips = weight_handle(Strips.from_dense(torch.zeros(64, 16), height=16))
    inputs = weight_handle(Strips.from_dense(torch.zeros(64, 9), height=16))
    good = {"mode": "LSTM", "path": "rows", "input_size": 9, "hidden_size": 16, "output_size": 16}

    def made(layers: Any, **changes: Any) -> Any:
        return _core.RecurrentNetwork(**(good | changes), layers=layers)

    direction = _core.RecurrentDirection
    layer = [direction(input=inputs, hidden=strips)]
    for path in ("panels", "rows", "few_tokens"):
        assert made([layer], path=path) is not None
    for changes, message in (
        ({"mode": "lstm"}, "mode must be LSTM"),
        ({"path": "columns"}, "path must be panels"),
        ({"hidden_size": 0}, "sizes must be"),
        ({"input_size": 8}, "wrong shape"),
        ({"mode": "GRU"}, "wrong shape"),
        ({"mode": "GRU", "output_size": 15}, "only an LSTM"),
        ({"output_size": 15}, "a projection is missing"),
    ):
        with pytest.raises(ValueError, match=f"recurrent: .*{message}"):
            made([layer], **changes)
    bias = torch.zeros(63).numpy()
    for layers, changes, message in (
        ([], {}, "no layers"),
        ([[]], {}, "one direction or two"),
        ([layer * 3], {}, "one direction or two"),
        ([layer, layer * 2], {}, "differ in their directions"),
        ([[direction(input=runs, hidden=strips)]], {"path": "few_tokens"}, "rows any packing"),
        ([[direction(input=inputs, hidden=strips, input_bias=bias)]], {}, "bias"),
        ([[direction(input=runs, hidden=runs)]], {"output_size": 9}, "a projection is missing"),
        ([[direction(input=inputs, hidden=strips, projection=strips)]], {}, "not expected"),
        ([[direction(input=inputs, hidden=chunks(24))]], {"path": "panels"}, "cuts a tile"),
    ):
        with pytest.raises(ValueError, match=f"recurrent: .*{message}"):
            made(layers, **changes)
    with pytest.raises(ValueError, match="must be Weights"):
        direction(input=inputs, hidden=None)


def chunks(rows: int) -> Any:
    """The native weight of an LSTM's hidden layer, with chunks that cut its unit tiles."""
    return weight_handle(Runs.from_dense(torch.zeros(64, 16), chunk=rows))


@pytest.mark.parametrize(
    ("sequences", "tokens", "tall_blocks", "path"),
    [
        (1, 1, False, "few_tokens"),
        (7, 7, False, "few_tokens"),
        (7, 8, False, "rows"),
        (8, 8, False, "panels"),
        (8, 8, True, "rows"),
        (16, 900, True, "rows"),
        (17, 17, True, "panels"),
    ],
)
def test_the_path_of_a_call(sequences: int, tokens: int, tall_blocks: bool, path: str) -> None:
    assert _core.recurrent_path(sequences, tokens, tall_blocks) == path
