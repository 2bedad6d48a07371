"""Recurrent networks inside models: swapped by sparsify_ and back, pruned, unrolled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from recurrent_cases import NETWORKS, dense, error_of, random_state
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import sparse_engine as se
from sparse_engine.auto import network as auto_network
from sparse_engine.backends import cpu_timer
from sparse_engine.errors import UsageError


class Tagger(nn.Module):
    """An embedding, a network, a linear layer: what users have around recurrent layers."""

    def __init__(self, network: Any, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, network.input_size)
        self.network = network
        self.alias = network  # reached by two names
        self.head = nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.network(self.embedding(ids))
        answer: Tensor = self.head(states)
        return answer


@pytest.mark.parametrize("kind", NETWORKS)
def test_sparsify_swaps_networks_and_back(kind: str) -> None:
    network = dense(kind, 32, 48, bidirectional=True, batch_first=True)
    width = 2 * (getattr(network, "proj_size", 0) or 48)
    model = Tagger(network, width).eval().requires_grad_(False)
    ids = torch.randint(0, 30, (3, 12))
    expected = model(ids)
    report = se.sparsify_(model, se.SparseConfig("csr"))
    assert type(model.network) is NETWORKS[kind][1]
    assert model.alias is model.network
    assert (model(ids) - expected).abs().max() < 1e-5
    rows = {row.name: row for row in report.rows}
    assert rows["network.hh_l0_reverse"].format == "csr"
    assert rows["network.ih_l0"].sparsity == pytest.approx(0.6, abs=0.05)
    assert rows["head"].format == "dense"
    assert "recurrent networks run natively" in report.native
    se.densify_(model)
    assert type(model.network) is type(network)
    assert (model(ids) - expected).abs().max() < 1e-5


def test_what_sparsify_leaves_dense() -> None:
    class Own(nn.LSTM):
        pass

    for network, config, why in (
        (dense("lstm", sparsity=0.0), "csr", "no gain"),
        (Own(9, 21), "csr", "is a Own"),
        (dense("gru").double(), "csr", "cast the model"),
        (dense("gru"), "dense", "requested"),
    ):
        model = Tagger(network, 21)
        report = se.sparsify_(model, config)
        assert model.network is network
        assert why in next(row.reason for row in report.rows if row.name == "network.hh_l0")
    model = Tagger(dense("lstm"), 21)
    report = se.sparsify_(model, "csr", filter_fn=lambda m, name: name != "network")
    assert "filter_fn" in str(report)
    with pytest.raises(UsageError, match=r"SparseGRU\.from_dense"):
        se.sparsify_(dense("gru"), "csr")
    # "auto" measures: the report has a reason for either result.
    model = Tagger(dense("lstm", 64, 256, sparsity=0.95), 256)
    report = se.sparsify_(model)
    assert "32 steps" in next(row.reason for row in report.rows if row.name == "network.hh_l0")


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "least_squares"])
def test_networks_are_pruned_like_linear_layers(kind: str, method: str) -> None:
    network = dense(kind, 16, 24, sparsity=0.0, num_layers=2, bidirectional=True)
    before = copy.deepcopy(network)
    inputs = [torch.randn(20, 4, 16) for _ in range(3)]
    needs = {"calibration": inputs} if method != "magnitude" else {}
    criterion, recovery = (
        (method, None) if method != "least_squares" else ("sparsegpt", "least_squares")
    )
    seen = []
    model = nn.Sequential(network)
    report = se.prune(
        model,
        0.5,
        criterion=criterion,
        recovery=recovery,
        progress=lambda *p: seen.append(p),
        **needs,
    )
    assert model[0] is network
    names = {row.name for row in report.layers}
    assert {"0.ih_l0", "0.hh_l1_reverse"} <= names
    assert names <= {name for _, _, name in seen}
    for name, weight in network.named_parameters():
        if name.startswith("weight"):
            assert int((weight == 0).sum()) / weight.numel() == pytest.approx(0.5, abs=0.01)
    x = torch.randn(20, 4, 16)
    truth_, found = before(x)[0], network(x)[0]
    error = float((found - truth_).norm() / truth_.norm())
    assert 0 < error < 1.0
    if method == "least_squares":
        plain = copy.deepcopy(before)
        se.prune(plain, 0.5)
        assert error < float((plain(x)[0] - truth_).norm() / truth_.norm())


@pytest.mark.parametrize("kind", NETWORKS)
def test_unrolled_networks_compute_the_same(kind: str) -> None:
    from sparse_engine.pruning.unrolled import unrolled

    for more in ({"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}):
        network = dense(kind, **more)
        x, state = torch.randn(5, 3, 9), random_state(network, 5 if network.batch_first else 3)
        lengths = torch.tensor([2, 3, 1, 3, 3][: 5 if network.batch_first else 3])
        packed = pack_padded_sequence(x[:5], lengths, network.batch_first, enforce_sorted=False)
        with unrolled(copy.deepcopy(network)) as slow:
            assert {"ih_l0", "hh_l0"} <= dict(slow.named_modules()).keys()
            assert error_of(slow(x, state), network(x, state)) < 1e-6
            assert error_of(slow(x), network(x)) < 1e-6
            assert error_of(slow(packed, state), network(packed, state)) < 1e-6
            one = tuple(t[:, 0] for t in state) if isinstance(state, tuple) else state[:, 0]
            assert error_of(slow(x[0], one), network(x[0], one)) < 1e-6


class Paced(nn.Module):
    """A fake network, dense or sparse, whose calls take the given time on a fake clock."""

    def __init__(self, clock: list[float], sequence: float, step: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.input_size, self.batch_first, self.bidirectional = 4, False, False
        self.clock, self.sequence_seconds, self.step_seconds = clock, sequence, step

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        self.clock[0] += self.step_seconds if len(x) == 1 else self.sequence_seconds
        return x, x

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        self.clock[0] += self.step_seconds
        return x, x


@pytest.mark.parametrize(
    ("sequence", "step", "tokens", "kept"),
    [
        (0.5, 0.5, (1, 128), True),
        (0.5, 2.0, (1, 128), False),  # slower a step at a time
        (0.5, 2.0, (128,), True),  # single steps are no workload here
        (2.0, 0.5, (1, 128), False),
    ],
)
def test_auto_keeps_no_network_that_is_slower_in_a_use(
    sequence: float,
    step: float,
    tokens: tuple[int, ...],
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(cpu_timer, "perf_counter", lambda: clock[0])
    dense, sparse = Paced(clock, 1.0, 1.0), Paced(clock, sequence, step)
    found, why = auto_network.faster_network(dense, sparse, se.SparseConfig(tokens=tokens))
    assert found is kept
    assert ("a step" in why) == (1 in tokens)


@pytest.mark.parametrize("kind", NETWORKS)
def test_auto_times_networks_and_cells_of_every_kind(kind: str) -> None:
    network = dense(kind, 16, 24)
    sparse = NETWORKS[kind][1].from_dense(network, "csr")
    assert "a step" in auto_network.faster_network(network, sparse, se.SparseConfig(tokens=(1,)))[1]
    cell = nn.GRUCell(16, 24).requires_grad_(False)
    config = se.SparseConfig(tokens=(1, 64))
    found = auto_network.faster_network(cell, se.nn.SparseGRUCell.from_dense(cell, "csr"), config)
    assert "a step" in found[1]
    assert "2 steps" in found[1]
