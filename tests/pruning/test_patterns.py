"""find_patterns: every kind of layer, shared weights once, and the model as it was."""

from __future__ import annotations

import torch
from torch import nn

import sparse_engine as se
from sparse_engine.pruning import find_patterns

torch.set_num_threads(1)


def test_patterns_are_those_that_prune_made() -> None:
    torch.manual_seed(0)
    layers = {"a": "4x1", "b": "2:4", "c": "element", "d": "8x8"}
    model = nn.ModuleDict({name: nn.Linear(64, 48) for name in (*layers, "e")})
    for name, granularity in layers.items():
        sparsity = None if granularity == "2:4" else 0.75
        se.prune(model, sparsity, granularity, filter_fn=lambda _, path, name=name: path == name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[tuple[int, int, str]] = []
    report = find_patterns(model, lambda *step: seen.append(step))
    found = {row.name: row.nm or row.block for row in report.layers}
    assert found == layers | {"e": "dense"}
    assert "5 linear layers" in report.summary
    assert "zeros: 55.0% of them" in report.summary
    assert seen[-1] == (5, 5, "e")
    assert "b: 48x64, 50.0% zeros, element, filled 100.0%, 2:4" in str(report)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_parts_of_recurrent_networks_and_shared_weights() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"lstm": nn.LSTM(16, 24), "one": nn.Linear(24, 24), "two": nn.Linear(24, 24)}
    )
    model["two"].weight = model["one"].weight
    with torch.no_grad():
        model["lstm"].weight_hh_l0[:, ::2] = 0
    report = find_patterns(model)
    assert [row.block for row in report.layers].count("columns") == 1
    assert [row.name for row in report.layers if not row.name.startswith("lstm")] == ["one"]
    assert report.to_dict()["layers"][0]["shape"] == (96, 16)


def test_no_layers() -> None:
    assert find_patterns(nn.LayerNorm(4)).summary.startswith("0 linear layers: none; zeros: 0.0%")
