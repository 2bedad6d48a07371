"""Recurrent networks against torch in float64: every cell, format, dtype, ISA and input shape."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from recurrent_cases import ISAS, NETWORKS, dense, error_of, flat, random_state, sparse, truth
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import sparse_engine as se
from sparse_engine import _core
from sparse_engine.errors import UsageError
from sparse_engine.nn.recurrent.rows import deinterleave_gates, interleave_gates


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 3, 7, 8, 70])
@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_agree_with_torch(
    kind: str, batch: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_ENGINE_ISA", isa)
    network = dense(kind, num_layers=2, bidirectional=True)
    x, state = torch.randn(11, batch, 9), random_state(network, batch)
    found = sparse(kind, network)(x, state)
    assert error_of(found, truth(network, x, state)) < 3e-6


@pytest.mark.parametrize(
    "spec", ["csr", "sellp", "bitmask", "nm:2:4", "bsr:4x1", "bsr:16x1", "bsr:32x1"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize("kind", ["lstm", "gru", "lstm, projection"])
def test_every_format_and_dtype(kind: str, batch: int, dtype: str, spec: str) -> None:
    network = dense(kind, 32, 32, num_layers=2, sparsity=0.0 if spec == "nm:2:4" else 0.6)
    if spec == "nm:2:4":
        for name, weight in network.named_parameters():
            if name.startswith("weight"):
                pairs = weight.view(-1, 4)
                pairs[:, torch.randperm(4)[:2]] = 0
        if "projection" in kind:
            pytest.skip("5 features are no groups of 4")
    layer = sparse(kind, network, spec, dtype)
    x = torch.randn(30, batch, 32)
    # The stored values are the reference; int8 activations are quantised as well.
    rounded = layer.to_dense(torch.float32)
    error = error_of(layer(x), truth(rounded, x))
    # Kernels that multiply bfloat16 by bfloat16 round the inputs as well.
    rounding = {"bf16", "fp16", "amx_bf16"}
    rounds = dtype == "bfloat16" and not rounding.isdisjoint(_core.capabilities())
    assert error < (0.2 if dtype == "int8" else 2e-2 if rounds else 3e-6)
    if dtype == "float32":
        assert error_of(layer(x), truth(network, x)) < 3e-6


@pytest.mark.parametrize("kind", NETWORKS)
def test_to_dense_inverts_from_dense(kind: str) -> None:
    network = dense(kind, num_layers=2, bidirectional=True, batch_first=True)
    back = sparse(kind, network).to_dense()
    assert type(back) is type(network)
    for name, parameter in network.named_parameters():
        assert torch.equal(getattr(back, name), parameter), name
    x = torch.randn(2, 5, 9)
    assert error_of(back(x), network(x)) < 1e-6


def test_interleaving_is_inverted() -> None:
    rows = torch.randn(4 * 21, 3)
    interleaved = interleave_gates(rows, 4)
    assert interleaved.shape == (4 * 32, 3)
    # After the first gate of 16 units comes their second gate.
    assert torch.equal(interleaved[16 : 16 + 16], rows[21 : 21 + 16])
    assert torch.equal(deinterleave_gates(interleaved, 4, 21), rows)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "lstm, projection"])
@pytest.mark.parametrize("ends", [1, 2])
@pytest.mark.parametrize("count", [3, 20])
def test_sequences_of_different_length(kind: str, ends: int, count: int) -> None:
    network = dense(kind, num_layers=2, bidirectional=ends == 2)
    lengths = torch.randint(1, 40, (count,)).tolist()
    sequences, layer = [torch.randn(n, 9) for n in lengths], sparse(kind, network)
    unsorted = pack_sequence(sequences, enforce_sorted=False)
    state = random_state(network, count)
    for x in (unsorted, pack_sequence(sorted(sequences, key=len, reverse=True))):
        found, expected = layer(x, state), truth(network, x, state)
        assert error_of(found, expected) < 3e-6
        assert isinstance(found[0], PackedSequence)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            a, b = getattr(found[0], name), getattr(expected[0], name)
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
    padded = torch.zeros(max(lengths), count, 9)
    for i, sequence in enumerate(sequences):
        padded[: len(sequence), i] = sequence
    x = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)
    assert error_of(layer(x), truth(network, x)) < 3e-6


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_shapes_of_input(kind: str) -> None:
    network = dense(kind)
    layer = sparse(kind, network)
    x = torch.randn(6, 9)
    assert error_of(layer(x), truth(network, x)) < 3e-6  # without a batch
    state = random_state(network, 1)
    one = tuple(t[:, 0] for t in state) if isinstance(state, tuple) else state[:, 0]
    assert error_of(layer(x, one), truth(network, x, one)) < 3e-6
    y, last = layer(torch.randn(6, 0, 9))
    assert y.shape == (6, 0, 21)
    assert flat((y, last))[1].shape == (1, 0, 21)
    first = dense(kind, batch_first=True, bias=False)
    x = torch.randn(3, 6, 9)
    assert error_of(sparse(kind, first)(x), truth(first, x)) < 3e-6
    strided = torch.randn(9, 6, 3).permute(2, 1, 0)
    assert error_of(sparse(kind, first)(strided), truth(first, strided)) < 3e-6
    y, last = layer(x[0].bfloat16())
    assert y.dtype == torch.bfloat16
    assert {t.dtype for t in flat((y, last))} == {torch.bfloat16}


@pytest.mark.parametrize("hidden", [1, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_units_and_threads(hidden: int, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for kind in ("lstm", "gru"):
            network = dense(kind, 40, hidden, bidirectional=True)
            for spec in ("csr", "sellp"):
                layer = sparse(kind, network, spec)
                for batch in (1, 33):
                    x = torch.randn(5, batch, 40)
                    assert error_of(layer(x), truth(network, x)) < 3e-6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 40])
def test_the_result_does_not_depend_on_the_threads(batch: int) -> None:
    network = dense("lstm", 256, 256, bidirectional=True)  # enough work for several threads
    layer, x = sparse("lstm", network), torch.randn(40, batch, 256)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert error_of(found[0], truth(network, x)) < 1e-5
    for other in found[1:]:
        assert error_of(other, found[0]) == 0


@pytest.mark.parametrize("spec", ["csr", "sellp", "bsr:16x1"])
@pytest.mark.parametrize("batch", [1, 20])
def test_units_of_very_different_size(batch: int, spec: str) -> None:
    """Threads are balanced by non-zeros: some units have all weights, most have none."""
    network = dense("lstm", 512, 512, sparsity=0.0)
    for name, weight in network.named_parameters():
        if name.startswith("weight"):
            weight.view(4, 512, -1)[:, 16:480] = 0
    layer, x = sparse("lstm", network, spec), torch.randn(9, batch, 512)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 6):
            torch.set_num_threads(threads)
            assert error_of(layer(x), truth(network, x)) < 1e-5
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_errors_do_not_grow_over_many_steps(dtype: str) -> None:
    torch.manual_seed(0)
    network = nn.LSTM(64, 128, 2).requires_grad_(False)
    for name, weight in network.named_parameters():
        # Weights as large as trained ones: the state neither vanishes nor explodes.
        weight.normal_(0, 1.5 * 128**-0.5)
        if name.startswith("weight"):
            weight[torch.rand_like(weight) < 0.5] = 0
    x = torch.randn(512, 2, 64)
    expected = truth(network, x)[0]
    assert float(expected[-1].abs().mean()) > 0.05
    y = sparse("lstm", network, "csr", dtype)(x)[0]
    error = (y - expected).norm() / expected.norm()
    assert error < (1e-4 if dtype == "float32" else 3e-2)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("batch", [1, 9])
def test_single_steps_equal_sequences(kind: str, batch: int) -> None:
    network = dense(kind, num_layers=2)
    layer, x = sparse(kind, network), torch.randn(7, batch, 9)
    expected, state = layer(x), None
    found = []
    for part in x:
        before = state
        y, state = layer.step(part, state)
        found.append(y)
        if before is not None:  # overwritten
            assert all(
                a.data_ptr() == b.data_ptr()
                for a, b in zip(flat((y, state))[1:], flat((y, before))[1:], strict=True)
            )
    assert error_of((torch.stack(found), state), expected) < 1e-6
    half, state = layer.step(x[0].bfloat16())
    assert half.dtype == torch.bfloat16
    held = [t.clone() for t in flat((half, state))[1:]]
    again, state = layer.step(x[1].bfloat16(), state)
    exact = layer(x[:1])[1]  # a float32 state stays float32 with bfloat16 inputs
    _, kept_state = layer.step(x[1].bfloat16(), exact)
    assert {t.dtype for t in flat((y, kept_state))[1:]} == {torch.float32}
    want = layer.step(x[1].bfloat16().float(), layer(x[:1])[1])[1]
    assert error_of((y, kept_state), (y, want)) == 0
    assert not any(torch.equal(a, b) for a, b in zip(held, flat((again, state))[1:], strict=True))


@pytest.mark.parametrize(
    ("cell", "twin"),
    [
        (nn.LSTMCell, se.nn.SparseLSTMCell),
        (nn.GRUCell, se.nn.SparseGRUCell),
        (nn.RNNCell, se.nn.SparseRNNCell),
    ],
)
def test_cells(cell: type[Any], twin: type[Any]) -> None:
    torch.manual_seed(0)
    for more in ({}, {"bias": False}, {"nonlinearity": "relu"}):
        if "nonlinearity" in more and cell is not nn.RNNCell:
            continue
        plain = cell(9, 21, **more).requires_grad_(False)
        layer = twin.from_dense(plain, "csr")
        pair = cell is nn.LSTMCell
        for shape in ((3,), (1,), ()):
            x, h, c = torch.randn(*shape, 9), torch.randn(*shape, 21), torch.randn(*shape, 21)
            for state in (None, (h, c) if pair else h):
                kept = h.clone()
                found, expected = layer(x, state), plain(x, state)
                for a, b in zip(*((t if pair else (t,)) for t in (found, expected)), strict=True):
                    assert torch.allclose(a, b, atol=1e-6)
                assert torch.equal(kept, h)
        back = layer.to_dense()
        assert type(back) is cell
        assert all(
            torch.equal(p, q) for p, q in zip(back.parameters(), plain.parameters(), strict=True)
        )
        with pytest.raises(UsageError, match="another class"):
            twin.from_dense(nn.Linear(2, 2), "csr")
    assert twin(4, 5)(torch.randn(2, 4)) is not None


def test_state_dicts_copies_and_weights_that_change() -> None:
    network = dense("gru", num_layers=2)
    layer, x = sparse("gru", network, "sellp"), torch.randn(4, 2, 9)
    expected = layer(x)
    empty = se.nn.SparseGRU(9, 21, 2)
    assert error_of(empty(x), (torch.zeros(4, 2, 21), torch.zeros(2, 2, 21))) == 0
    empty.load_state_dict(layer.state_dict())
    assert error_of(empty(x), expected) == 0
    twin = copy.deepcopy(layer)
    assert error_of(twin(x), expected) == 0
    layer.hh_l0.values.mul_(0.5)  # in place
    changed = layer(x)
    assert error_of(changed, expected) > 1e-3
    assert error_of(changed, truth(layer.to_dense(), x)) < 3e-6
    layer.hh_l1.bias = layer.hh_l1.bias + 1.0
    assert error_of(layer(x), truth(layer.to_dense(), x)) < 3e-6
    layer.hh_l1.bias.add_(1.0)
    assert error_of(layer(x), truth(layer.to_dense(), x)) < 3e-6
    assert error_of(twin(x), expected) == 0
    half = twin.bfloat16()
    assert error_of(half(x), truth(half.to_dense(torch.float32), x)) < 3e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("kind", NETWORKS)
def test_large_states_and_gates(
    kind: str, batch: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_ENGINE_ISA", isa)
    network = dense(kind)
    state = random_state(network, batch)
    scales = torch.tensor([-500.0, -80, -45, -1, 0, 1, 45, 80, 500])
    state = tuple(50 * t for t in state) if isinstance(state, tuple) else 50 * state
    x = torch.randn(9, batch, 9) * scales[:, None, None]
    found, expected = sparse(kind, network)(x, state), truth(network, x, state)
    for a, b in zip(flat(found), flat(expected), strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 8])
def test_nan_propagates(batch: int) -> None:
    network = dense("lstm", sparsity=0.0)
    x = torch.randn(5, batch, 9)
    x[2, 0, 3] = float("nan")
    y, _ = sparse("lstm", network)(x)
    assert not y[:2].isnan().any()
    assert y[2:, 0].isnan().all()
    assert not y[:, 1:].isnan().any()


def test_bad_input_is_refused() -> None:
    layer = sparse("lstm", dense("lstm", num_layers=2))
    x, h, c = torch.randn(4, 3, 9), torch.zeros(2, 3, 21), torch.zeros(2, 3, 21)
    for call, why in (
        (lambda: layer(torch.randn(4, 3, 8)), "takes"),
        (lambda: layer(torch.randn(9)), "takes"),
        (lambda: layer(torch.randn(1, 4, 3, 9)), "takes"),
        (lambda: layer(x[:0]), "no steps"),
        (lambda: layer(x, h), "pair"),
        (lambda: layer(x, (h, c[:1])), "state c"),
        (lambda: layer(x, (h[:, :2], c)), "state h"),
        (lambda: layer(x[:, 0], (h, c)), "state h"),
        (lambda: layer(x.double()), "cast"),
        (lambda: layer(x.clone().requires_grad_()), "inference"),
        (lambda: layer.step(x), "takes"),
        (lambda: sparse("gru", dense("gru"))(x, (h, c)), "a tensor"),
        (lambda: layer(x, (h,)), "pair"),
        (lambda: layer(x, (h, c, c)), "pair"),
        (lambda: sparse("gru", dense("gru", bidirectional=True)).step(x[0]), "whole"),
        (lambda: se.nn.SparseGRU.from_dense(dense("lstm")), "another class"),
        (lambda: se.nn.SparseLSTM(3, 0), "1 or more"),
        (lambda: se.nn.SparseLSTM(3, 4, proj_size=4), "smaller"),
        (lambda: se.nn.SparseRNN(3, 4, nonlinearity="gelu"), "tanh or relu"),
    ):
        with pytest.raises(UsageError, match=why):
            call()
    with pytest.raises(RuntimeError, match="sorted"):
        pack_sequence([x[:1, 0], x[:, 1]], enforce_sorted=True)
