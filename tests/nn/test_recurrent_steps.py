"""Single steps read plain arguments without conversion, and detect any change of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recurrent_cases import dense, error_of, flat, random_state, sparse, truth
from torch import nn

import sparse_engine as se
from sparse_engine import _core
from sparse_engine.errors import UsageError

KINDS = ["lstm", "gru", "rnn", "lstm, projection"]


def in_place(layer: Any) -> None:
    layer.hh_l1.values.mul_(0.5)


def bias_in_place(layer: Any) -> None:
    layer.ih_l0.bias.add_(0.25)


def by_data(layer: Any) -> None:
    layer.hh_l0.values.data = layer.hh_l0.values * 0.5


def new_buffer(layer: Any) -> None:
    layer.ih_l1.values = layer.ih_l1.values * 2


def new_bias(layer: Any) -> None:
    layer.hh_l0.bias = layer.hh_l0.bias + 1


def swapped(layer: Any) -> None:
    layer.hh_l0 = se.nn.SparseLinear.from_dense(layer.hh_l1.to_dense(), "csr")


def swapped_below(layer: Any) -> None:
    layer._modules["ih_l1"] = se.nn.SparseLinear.from_dense(layer.ih_l1.to_dense(), "csr")
    layer.ih_l1.values.mul_(3)


def loaded(layer: Any) -> None:
    other = dense("lstm", num_layers=2)
    for parameter in other.parameters():
        parameter.mul_(0.7)
    layer.load_state_dict(sparse("lstm", other, "bitmask").state_dict())


def cast(layer: Any) -> None:
    layer.bfloat16()


CHANGES = [
    in_place, bias_in_place, by_data, new_buffer, new_bias, swapped, swapped_below, loaded, cast
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_detects_changed_weights(change: Callable[[Any], None]) -> None:
    layer = sparse("lstm", dense("lstm", num_layers=2))
    x, state = torch.randn(2, 9), (torch.randn(2, 2, 21), torch.randn(2, 2, 21))
    before = layer.step(x, tuple(t.clone() for t in state))
    for _ in range(2):  # the second needs no conversion
        before = layer.step(x, tuple(t.clone() for t in state))
    change(layer)
    found = layer.step(x, tuple(t.clone() for t in state))
    expected = truth(layer.to_dense(torch.float32), x[None], state)
    assert error_of((found[0], found[1]), (expected[0][0], expected[1])) < 3e-6
    assert error_of((found[0], found[1]), before) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_steps_with_plain_arguments(kind: str, batch: int) -> None:
    network = dense(kind, num_layers=2)
    layer, x = sparse(kind, network), torch.randn(6, batch, 9)
    state, found = random_state(network, batch), []
    expected = truth(network, x, state)
    for part in x:
        y, state = layer.step(part, state)
        found.append(y)
    assert error_of((torch.stack(found), state), expected) < 3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_steps_whose_arguments_are_not_plain(kind: str) -> None:
    network = dense(kind, num_layers=2)
    layer, x = sparse(kind, network), torch.randn(3, 9)
    state = random_state(network, 3)
    plain = tuple(t.clone() for t in state) if isinstance(state, tuple) else state.clone()
    expected = layer.step(x, plain)  # makes the native network
    for turn in (
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: nn.Parameter(t.clone()),
        lambda t: t.clone().requires_grad_(),
    ):
        with torch.no_grad():
            given = tuple(map(turn, state)) if isinstance(state, tuple) else turn(state)
            found = layer.step(turn(x), given)
        assert error_of(found, expected) == 0
        assert all(
            torch.equal(a, b)
            for a, b in zip(flat((x, given))[1:], flat((x, expected[1]))[1:], strict=True)
        )


def test_bad_arguments_of_a_step_are_refused() -> None:
    layer = sparse("lstm", dense("lstm", num_layers=2))
    x, h, c = torch.randn(3, 9), torch.zeros(2, 3, 21), torch.zeros(2, 3, 21)
    layer.step(x, (h, c))  # makes the native network
    for state, why in (
        ((h[:, :2], c), "state h"),
        ((h, c[:1].clone()), "state c"),
        ((h[None], c), "state h"),
        (h, "a pair"),
        ((h, c, c), "a pair"),
    ):
        with pytest.raises(UsageError, match=why):
            layer.step(x, state)
    with pytest.raises(UsageError, match="takes"):
        layer.step(x[:, :8], (h, c))
    with pytest.raises(UsageError, match="cast"):
        layer.step(x.double(), (h, c))
    with pytest.raises(UsageError, match="inference"):
        layer.step(x.clone().requires_grad_(), (h, c))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_do_not_change_their_state(cell: type[Any]) -> None:
    plain = cell(9, 21).requires_grad_(False)
    layer = {
        nn.LSTMCell: se.nn.SparseLSTMCell,
        nn.GRUCell: se.nn.SparseGRUCell,
        nn.RNNCell: se.nn.SparseRNNCell,
    }[cell].from_dense(plain, "csr")
    x, h, c = torch.randn(3, 9), torch.randn(3, 21), torch.randn(3, 21)
    state: Any = (h, c) if cell is nn.LSTMCell else h
    before = h.clone()
    for _ in range(3):
        found, expected = layer(x, state), plain(x, state)
        for a, b in zip(flat((x, found))[1:], flat((x, expected))[1:], strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        assert torch.equal(h, before)
    layer.network.hh_l0.values.mul_(0.5)
    expected = layer.to_dense()(x, state)
    assert torch.allclose(flat((x, layer(x, state)))[1], flat((x, expected))[1], atol=1e-6)
    with pytest.raises(UsageError):
        layer(x, (h[:2], c) if cell is nn.LSTMCell else h[:2])


def test_unchanged_compares_objects_memory_and_versions() -> None:
    tensor, other = torch.zeros(3), torch.zeros(3)
    held = {"a": tensor, "b": None}
    entries = [
        (held, "a", tensor, tensor.data_ptr(), tensor._version),
        (held, "b", None, None, None),
        (held, "missing", None, None, None),
    ]
    assert _core.unchanged([])
    assert _core.unchanged(entries)
    tensor.add_(1)
    assert not _core.unchanged(entries)
    entries[0] = (held, "a", tensor, tensor.data_ptr(), tensor._version)
    assert _core.unchanged(entries)
    tensor.data = other
    assert not _core.unchanged(entries)
    entries[0] = (held, "a", tensor, None, None)
    assert _core.unchanged(entries)
    held["b"] = other
    assert not _core.unchanged(entries)
    held["b"] = None
    del held["a"]
    assert not _core.unchanged(entries)
    for wrong in ([1], [(held, "a")], [([], "a", None, None, None)]):
        with pytest.raises(ValueError, match="entry"):
            _core.unchanged(wrong)
    with pytest.raises(AttributeError):
        _core.unchanged([({"a": None}, "a", None, 1, None)])
