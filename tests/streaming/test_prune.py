"""A streamed run writes what pruning in memory writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from sharded import MODELS, save_sharded, tensors_of, token_batches

import sparse_engine as se
from sparse_engine.io import load_pretrained, save_checkpoint
from sparse_engine.streaming import open_checkpoint, prune_checkpoint

torch.set_num_threads(1)

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"sparsity": 0.6, "criterion": "magnitude"},
    "random": {"sparsity": 0.5, "criterion": "random", "seed": 3},
    "wanda": {"sparsity": 0.5, "criterion": "wanda"},
    "sparsegpt": {
        "sparsity": 0.5,
        "granularity": "4x1",
        "criterion": "sparsegpt",
        "recovery": "least_squares",
    },
    "2:4": {"granularity": "2:4", "criterion": "wanda", "recovery": "least_squares"},
    "blocks": {"sparsity": 0.5, "criterion": "magnitude", "recovery": "blocks(steps=3)"},
}


def in_memory(source: Path, out: Path, **options: Any) -> se.PruneReport:
    model, folder = load_pretrained(source)
    report = se.prune(model, **options)
    save_checkpoint(model, out, folder, report.to_dict())
    return report


def calibrated(options: dict[str, Any]) -> dict[str, Any]:
    needs = options["criterion"] in ("wanda", "sparsegpt") or "recovery" in options
    return options | ({"calibration": token_batches()} if needs else {})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_as_in_memory(kind: str, method: str, tmp_path: Path) -> None:
    source, options = save_sharded(tmp_path / "source", kind), calibrated(METHODS[method])
    expected = in_memory(source, tmp_path / "memory", **options)
    report = prune_checkpoint(open_checkpoint(source), tmp_path / "streamed", **options)
    before, after = tensors_of(tmp_path / "memory"), tensors_of(tmp_path / "streamed")
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    assert [row.name for row in report.layers] == [row.name for row in expected.layers]
    assert [r.error_after for r in report.layers] == [r.error_after for r in expected.layers]
    assert report.zeros_of_parameters == expected.zeros_of_parameters
    assert report.zeros_of_multiply_adds == expected.zeros_of_multiply_adds
    assert {(left.name, left.weights) for left in report.left} == {
        (left.name, left.weights) for left in expected.left
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_and_shards_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "source", "llama", dtype)
    options = calibrated(METHODS["sparsegpt"])
    in_memory(source, tmp_path / "memory", **options)
    report = prune_checkpoint(open_checkpoint(source), tmp_path / "streamed", **options)
    files = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in (tmp_path / "streamed").iterdir()) == sorted(
        [*files, "pruning.json"]
    )
    before, after = tensors_of(tmp_path / "memory"), tensors_of(tmp_path / "streamed")
    dense = tensors_of(source)
    for name in before:
        assert torch.equal(before[name], after[name]), name
        assert after[name].dtype == dtype
        assert name.endswith("_proj.weight") != torch.equal(dense[name], after[name]), name
    stored = json.loads((tmp_path / "streamed/pruning.json").read_text())
    assert stored["layers"][0]["name"] == report.layers[0].name
    model, _ = load_pretrained(tmp_path / "streamed")
    assert (model.model.layers[1].mlp.up_proj.weight == 0).float().mean() == 0.5
    assert list(tmp_path.glob("*unfinished*")) == []
