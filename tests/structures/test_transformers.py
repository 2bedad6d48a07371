"""Heads and units of the model families: cut models against rows and columns taken by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import sparse_engine as se
from sparse_engine.errors import UsageError


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    return transformers.BertModel(config).eval()


def inputs() -> dict[str, Any]:
    ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def test_cut_equals_zeros_in_the_layers_that_read() -> None:
    model, reference = bert(), bert()
    report = se.prune(model, 0.5, ["head", "unit"], "magnitude")
    for site in report.sites:
        removed = [i for i in range(site.groups) if i not in site.kept]
        assert removed
        layer = reference.get_submodule(".".join(site.name.split(".")[:3]))
        if site.kind == "head":
            weight = layer.attention.output.dense.weight.unflatten(1, (4, 6))
        else:
            weight = layer.output.dense.weight
        weight.data[:, removed] = 0
    mask = inputs()["attention_mask"].bool()
    found = model(**inputs()).last_hidden_state[mask]
    torch.testing.assert_close(found, reference(**inputs()).last_hidden_state[mask])
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["encoder.layer.0.attention.self.query.weight"] == (12, 24)
    assert shapes["encoder.layer.0.attention.output.dense.weight"] == (24, 12)
    assert shapes["encoder.layer.1.intermediate.dense.bias"] == (20,)
    assert model.encoder.layer[0].attention.self.num_attention_heads == 2


def test_round_to_and_keep() -> None:
    model = bert()
    report = se.prune(model, 0.9, [se.Head(keep=3), "unit(round_to=16)"], "random")
    kept = {site.kind: len(site.kept) for site in report.sites}
    assert kept == {"head": 3, "unit": 16}


@pytest.mark.parametrize("allocator", ["raw", "lamp", "global"])
def test_sites_compete(allocator: str) -> None:
    model = bert()
    down = model.encoder.layer[0].output.dense
    up = model.encoder.layer[0].intermediate.dense
    for weight in (down.weight, up.weight):
        weight.data *= 1e-3
    report = se.prune(model, 0.4, se.Unit(keep=2), "magnitude", allocator=allocator)
    kept = [len(site.kept) for site in report.sites]
    assert sum(kept) == 48
    if allocator == "raw":
        assert kept == [8, 40]


def test_refusals_leave_the_model_untouched() -> None:
    model = bert()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for arguments, message in (
        ({"granularity": ["head", "element"]}, "steps of their own"),
        ({"granularity": ["head", "head"]}, "twice"),
        ({"granularity": "head", "criterion": "sparsegpt"}, "use obs"),
        ({"granularity": "head", "criterion": "obs"}, "calibration"),
        ({"granularity": "head", "sparsity": 1.0}, "fraction"),
        ({"granularity": "head", "sparsity": None}, "no sparsity given"),
        ({"granularity": "hed"}, "structures head, unit"),
        ({"granularity": "head", "target": se.Target(speedup=3)}, "zeros beside structures"),
        ({"granularity": "head", "allocator": "owl"}, "choose"),
        ({"granularity": "head(width=2)"}, "no option"),
        ({"granularity": "head(keep=0)"}, "less than 1"),
    ):
        with pytest.raises(UsageError, match=message):
            se.prune(model, **{"sparsity": 0.5, **arguments})
    with pytest.raises(UsageError, match="no head"):
        se.prune(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), 0.5, "head")
    shared = bert()
    shared.encoder.layer[1].output.dense.weight = shared.encoder.layer[0].output.dense.weight
    with pytest.raises(UsageError, match="share a weight"):
        se.prune(shared, 0.5, "unit")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
