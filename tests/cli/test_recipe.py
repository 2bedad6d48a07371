"""prune --recipe: a run is repeated bit by bit, and conflicts are refused in one line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from command_line import ok, refused, run

pytest.importorskip("transformers")

from sparse_engine.cli.prune import prune
from sparse_engine.pruning.recipe import ARGUMENTS, OTHERS

torch.set_num_threads(1)
OPTIONS = (
    "--sparsity",
    "0.7",
    "--granularity",
    "4x1",
    "--criterion",
    "sparsegpt",
    "--samples",
    "40",
    "--seed",
    "3",
    "--ignore",
    "*.key",
    "--ignore",
    "re:.*\\.layer\\.0\\.output\\.dense",
)


PLAIN = "sparsity: 0.5\ncriterion: magnitude\nrecovery: none"


@pytest.fixture(scope="module")
def pruned(model: Path, texts: Path) -> Path:
    out = model.parent / "first"
    ok("prune", model, out, *OPTIONS, "--calibration", texts)
    return out


def test_a_run_is_repeated_bit_by_bit(model: Path, pruned: Path, tmp_path: Path) -> None:
    done = run("prune", model, tmp_path / "again", "--recipe", pruned)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    weights = (tmp_path / "again/model.safetensors").read_bytes()
    assert weights == (pruned / "model.safetensors").read_bytes()
    first, again = (
        json.loads((f / "pruning.json").read_text()) for f in (pruned, tmp_path / "again")
    )
    for key in ("recipe", "calibration", "versions"):
        assert first[key]
        assert again[key] == first[key]
    names = {row["name"] for row in first["layers"]}
    assert not any(name.endswith("key") for name in names)
    assert len(names) == 12 - 3


def test_a_changed_calibration_file_is_said(
    model: Path, texts: Path, pruned: Path, tmp_path: Path
) -> None:
    lines = texts.read_text().splitlines()
    (tmp_path / "other.txt").write_text("\n".join(line + " far away" for line in lines))
    recipe = json.loads((pruned / "pruning.json").read_text())
    changed = str(tmp_path / "other.txt")
    calibration = recipe["recipe"]["calibration"]
    recipe["recipe"]["calibration"] = [changed] if isinstance(calibration, list) else changed
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = run("prune", model, tmp_path / "out", "--recipe", tmp_path / "recipe.json")
    assert done.returncode == 0, done.stderr
    assert "are not those of" in done.stderr


def test_a_recipe_by_hand_with_overrides(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "criterion: magnitude\nrecovery: none\nsparsity: 0.5\nlayers:\n  - encoder.layer.0\n"
        "overrides:\n  - {match: '*.query', granularity: 2:4}\n"
    )
    ok("prune", model, tmp_path / "out", "--recipe", recipe)
    layers = json.loads((tmp_path / "out/pruning.json").read_text())["layers"]
    assert len(layers) == 6
    assert [row["granularity"] for row in layers if row["name"].endswith("query")] == ["2:4"]


@pytest.mark.parametrize(
    ("text", "options", "code", "match"),
    [
        ("sparsity: 0.5", ("--sparsity", "0.6"), 2, "--sparsity is given, and "),
        ("layers: ['*.key']", ("--layer", "x"), 2, "--layer is given, and "),
        ("sparsty: 0.5", (), 2, "'sparsty' is no option; the nearest are sparsity"),
        ("model: x", (), 2, "'model' is no option"),
        ("sparsity: [0.5]", (), 2, "sparsity is [0.5]; give one value"),
        ("layers: [[a]]", (), 2, "layers is [['a']]; give a list of values"),
        ("sparsity: much", (), 2, "Invalid value for '--sparsity'"),
        ("sparsity: 1.5", (), 2, "sparsity 1.5 is not a fraction"),
        ("sparsity: 0.5\ncriterion: x", (), 2, "criterion 'x' is not known"),
        ("sparsity: 0.5\nlayers: ['re:(']", (), 2, "pattern 're:('"),
        (f"{PLAIN}\nlayers: [qery]", (), 2, "layer 'qery' matches no layer; the nearest"),
        ("sparsity: 0.5\noverrides: [{match: a}]", (), 2, "override 'a' changes nothing"),
        ("- a", (), 3, "expected a mapping"),
    ],
)
def test_recipes_that_do_not_fit(
    text: str, options: tuple[str, ...], code: int, match: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    arguments = ("--recipe", tmp_path / "recipe.yaml", *options)
    assert match in refused(code, "prune", model, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_the_options_are_those_of_the_command() -> None:
    names = set(inspect.signature(prune).parameters)
    assert {*ARGUMENTS, *OTHERS} - {"overrides", "steps"} <= names


def test_no_such_recipe(model: Path, tmp_path: Path) -> None:
    arguments = ("prune", model, tmp_path / "out", "--recipe", tmp_path / "x")
    assert "there is no such file" in refused(2, *arguments)
