"""Recipes: what a run writes repeats it bit by bit, and what cannot be read is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.pruning import PruneReport, read_recipe
from sparse_engine.pruning.calibration import Batch, fingerprint

torch.set_num_threads(1)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))


def batches(seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(16, 32) for _ in range(3)]


def write(path: Path, report: PruneReport) -> Path:
    path.write_text(json.dumps(report.to_dict()))
    return path


ARGUMENTS: list[dict[str, Any]] = [
    {"sparsity": 0.8},
    {"granularity": "2:4", "criterion": "wanda", "ignore": ["1"]},
    {"sparsity": 0.5, "criterion": "random", "seed": 7},
    {
        "sparsity": 0.6,
        "criterion": "sparsegpt",
        "recovery": "least_squares",
        "layers": ["0", "re:[12]"],
        "overrides": [{"match": "0", "granularity": "4x1", "sparsity": 0.5, "criterion": "wanda"}],
    },
    {"sparsity": 0.7, "allocator": "lamp", "filter_fn": lambda module, name: name in ("1", "3")},
    {"criterion": "magnitude(sigma=1.0)"},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_a_recipe_repeats_its_run_bit_by_bit(arguments: dict[str, Any], tmp_path: Path) -> None:
    first, again = model(), model()
    report = se.prune(first, calibration=batches(), **arguments)
    recipe = read_recipe(write(tmp_path / "pruning.json", report))
    second = se.prune(again, **recipe.arguments, calibration=batches())
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert second.recipe == report.recipe
    assert recipe.changes(second.calibration) == []
    assert PruneReport.from_dict(report.to_dict()).recipe == report.recipe


def test_what_changed_is_said(tmp_path: Path) -> None:
    report = se.prune(model(), 0.5, criterion="wanda", calibration=batches())
    report.metrics["spearman"] = 0.77
    report.versions["torch"] = "1.0"
    folder = tmp_path / "pruned"
    folder.mkdir()
    recipe = read_recipe(write(folder / "pruning.json", report).parent)
    other = se.prune(model(), 0.5, criterion="wanda", calibration=batches(1))
    inputs, versions = recipe.changes(other.calibration)
    assert inputs == f"the calibration inputs are not those of {folder / 'pruning.json'}"
    assert "was written with torch 1.0, not" in versions
    assert json.loads((folder / "pruning.json").read_text())["metrics"] == {"spearman": 0.77}


def test_a_recipe_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "# YAML 1.2: 2:4 is a text\n"
        "version: 1\nsparsity: .75\nseed: 3\nrecovery: no\nallocator:\n"
        "ignore: ['re:.*', \"*.x\"]\n"
        "overrides:\n  - {match: 'a', granularity: 2:4}\n  - match: b\n    sparsity: 5e-1\n"
    )
    assert read_recipe(path).options == {
        "sparsity": 0.75,
        "seed": 3,
        "recovery": "no",
        "ignore": ["re:.*", "*.x"],
        "overrides": [{"match": "a", "granularity": "2:4"}, {"match": "b", "sparsity": 0.5}],
    }
    assert [override.match for override in read_recipe(path).overrides] == ["a", "b"]
    assert read_recipe(path).changes({"sha256": "0"}) == []


def test_arguments_are_those_of_prune(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("sparsity: 0.5\nsamples: 10\ncalibration: texts.txt")
    assert read_recipe(path).arguments == {"sparsity": 0.5}
    path.write_text("sparsty: 0.5")
    with pytest.raises(UsageError, match="'sparsty' is no option; the nearest are sparsity"):
        _ = read_recipe(path).arguments


def test_a_model_that_is_one_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = nn.Linear(16, 16)
    again = nn.Linear(16, 16)
    again.load_state_dict(first.state_dict())
    report = se.prune(first, 0.5, filter_fn=lambda module, name: True)
    recipe = read_recipe(write(tmp_path / "pruning.json", report))
    se.prune(again, **recipe.arguments)
    assert torch.equal(again.weight, first.weight)


def refused(error: type[SparseEngineError], path: Path, match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected a mapping"),
        ("just words", "expected a mapping"),
        ("- sparsity", "expected a mapping"),
        ("1: 2", "expected a mapping"),
        ("sparsity: 0.5\nsparsity: 0.6", "'sparsity' is there twice"),
        ('{"sparsity": 0.5, "sparsity": 0.6}', "'sparsity' is there twice"),
        ("a: &x [1]\nb: *x", "aliases are not read"),
        ("sparsity: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: [", "is no YAML"),
        ("a: " + "[" * 5000, "is no YAML"),
        ("version: 2\nsparsity: 0.5", "version 2, expected 1"),
        ("recipe: [1]", "expected a mapping"),
        ("a: \0", "is no YAML"),
    ],
)
def test_what_is_no_recipe(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    refused(InvalidFileError, path, match)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    refused(UsageError, tmp_path / "x", "there is no such file")
    refused(UsageError, tmp_path, r"pruning\.json: there is no such file")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    refused(InvalidFileError, tmp_path / "x", "is no YAML")


def test_json_needs_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "recipe"
    path.write_text('{"sparsity": 0.5}')
    assert read_recipe(path).options == {"sparsity": 0.5}
    path.write_text("sparsity: 0.5")
    refused(UsageError, path, "YAML needs PyYAML: pip install 'sparse-engine")


def test_fingerprints() -> None:
    ids, mask = torch.arange(6).view(2, 3), torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = Batch((), {"input_ids": ids, "attention_mask": mask}, (mask != 0,))
    found = fingerprint([batch])
    assert (found["rows"], found["tokens"]) == (2, 5)
    turned = Batch((), {"attention_mask": mask, "input_ids": ids}, (mask != 0,))
    assert fingerprint([turned]) == found
    for other in (
        Batch((), {"input_ids": ids + 1, "attention_mask": mask}, (mask != 0,)),
        Batch((), {"input_ids": ids.int(), "attention_mask": mask}, (mask != 0,)),
        Batch((), {"input_ids": ids.view(3, 2), "attention_mask": mask}, (mask != 0,)),
        Batch((ids,), {"attention_mask": mask}, (mask != 0,)),
    ):
        assert fingerprint([other])["inputs_sha256"] != found["inputs_sha256"]
    assert fingerprint([batch, batch])["rows"] == 4
    assert fingerprint([Batch((torch.rand(2, 3, 8),), {})])["tokens"] == 6
    assert fingerprint([Batch((torch.tensor(1.0), 3, None), {})])["rows"] == 1
