"""Adjacent layers: found by structure, and checked against derivatives of running models."""

from __future__ import annotations

import pytest
import torch
from links import check, names
from torch import nn

from sparse_engine.pruning.coupling import Link, couple, find_links
from sparse_engine.pruning.unrolled import unrolled


def test_sequential_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(7, 6), nn.Sequential(nn.GELU(), nn.Linear(6, 8))),
        nn.LayerNorm(8),
        nn.Linear(8, 4),
        nn.Linear(4, 4),
        nn.Softmax(-1),
        nn.Linear(4, 2),
    ).eval()
    links = check(model, lambda: model(torch.randn(3, 5)))
    assert names(links) == ["0 > 3.0", "3.0 > 3.1.1", "5 > 6"]


def test_convolutions_and_their_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 2, groups=2),
        nn.Sigmoid(),
        nn.Conv1d(6, 4, 3, groups=2),
        nn.Linear(5, 5),
    ).eval()
    with unrolled(model):
        links = check(model, lambda: model(torch.randn(2, 3, 18)))
    assert names(links) == [
        "0.linears.0 > 4.linears.0",
        "0.linears.0 > 4.linears.1",
        "4.linears.0 > 6.linears.0",
        "4.linears.1 > 6.linears.1",
    ]


def test_pooling_mixes_the_features_of_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.MaxPool1d(3, 1, 1), nn.Linear(6, 2))
    assert not find_links(model)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_networks(kind: type[nn.RNNBase], bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = kind(4, 5, num_layers=2, bidirectional=bidirectional)
    with unrolled(model):
        links = check(model, lambda: model(torch.randn(3, 2, 4)))
    found = names(links)
    suffixes = ("", "_reverse")[: 1 + bidirectional]
    for suffix in suffixes:
        for part in ("ih", "hh"):
            assert f"{part}_l0{suffix} > hh_l0{suffix}" in found
            for other in suffixes:
                assert f"{part}_l0{suffix} > ih_l1{other}" in found
    assert len(found) == 2 * len(suffixes) * (2 + len(suffixes))


def test_a_projected_lstm_and_a_cell() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"lstm": nn.LSTM(4, 6, num_layers=2, proj_size=3), "cell": nn.GRUCell(3, 5)}
    )

    def run() -> None:
        y, _ = model["lstm"](torch.randn(4, 2, 4))
        model["cell"](y[1], model["cell"](y[0]))

    with unrolled(model):
        found = names(check(model, run))
    assert {"lstm.hr_l0 > lstm.hh_l0", "lstm.hr_l0 > lstm.ih_l1"} <= set(found)
    assert {"lstm.ih_l0 > lstm.hr_l0", "lstm.hh_l1 > lstm.hr_l1"} <= set(found)
    assert {"cell.ih > cell.hh", "cell.hh > cell.hh"} <= set(found)
    assert "lstm.ih_l0 > lstm.hh_l0" not in found


def test_multihead_attention_and_encoder_layers() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    with unrolled(model):
        found = names(check(model, lambda: model(torch.randn(2, 5, 8))))
    assert found == sorted(
        f"layers.{i}.{pair}"
        for i in range(2)
        for pair in (
            f"linear1 > layers.{i}.linear2",
            f"self_attn.v_proj > layers.{i}.self_attn.out_proj",
        )
    )


def test_energies_against_sums_over_paths() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 4).double(), torch.randn(3, 6).double()
    link = Link("a", "b", torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 1, 1, -1, 2]))
    found = couple({"a": first, "b": second}, [link, link])
    assert found["a"].before is None
    assert found["b"].after is None
    assert found["a"].after is not None
    assert found["b"].before is not None
    for row in range(6):
        unit = row % 3
        reading = [j for j in range(6) if int(link.columns[j]) == unit]
        expected = 2 * second[:, reading].square().sum()
        torch.testing.assert_close(found["a"].after[row].double(), expected, rtol=1e-6, atol=0)
    for column, unit in enumerate(link.columns.tolist()):
        expected = 2 * first[[unit, unit + 3]].square().sum() if unit >= 0 else torch.zeros(())
        torch.testing.assert_close(
            found["b"].before[column].double(), expected.double(), rtol=1e-6, atol=0
        )
