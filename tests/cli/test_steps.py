"""prune with structures, and with the steps of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import ok, refused

pytest.importorskip("transformers")

from sparse_engine.cli.steps import is_recurrent, split_granularities, with_defaults
from sparse_engine.io import load_pretrained

STEPS = """
samples: 40
seed: 3
steps:
  - {granularity: [head, "unit(keep=4)"], sparsity: 0.5}
  - {granularity: 4x1, sparsity: 0.5, ignore: ["*.key"]}
"""


def test_heads_and_units_are_taken_out(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--granularity", "head, unit(round_to=4, keep=8)", "--sparsity", "0.5")
    ok("prune", model, out, *options, "--calibration", texts, "--samples", "40")
    written = json.loads((out / "pruning.json").read_text())
    assert written["recipe"]["granularity"] == ["head", "unit(round_to=4, keep=8)"]
    assert (written["criterion"], written["recovery"]) == ("fisher", "least_squares")
    assert written["recipe"]["allocator"] == "raw"
    loaded, _ = load_pretrained(str(out))
    dense, _ = load_pretrained(str(model))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (loaded, dense)]
    assert sizes[0] < sizes[1]
    ok("prune", model, tmp_path / "again", "--recipe", out)
    first, again = ((f / "model.safetensors").read_bytes() for f in (out, tmp_path / "again"))
    assert first == again


def test_steps_of_a_recipe_are_repeated_bit_by_bit(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "steps.yaml").write_text(STEPS)
    out, again = tmp_path / "out", tmp_path / "again"
    ok("prune", model, out, "--recipe", tmp_path / "steps.yaml", "--calibration", texts)
    written = json.loads((out / "pruning.json").read_text())
    first, second = written["recipe"]["steps"]
    assert (first["criterion"], second["criterion"]) == ("fisher", "sparsegpt")
    assert (first["allocator"], second["allocator"]) == ("raw", "uniform")
    assert "sparsity" not in written["recipe"]
    assert written["steps"][0]["sites"]
    ok("prune", model, again, "--recipe", out)
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (again / "model.safetensors").read_bytes()
    assert json.loads((again / "pruning.json").read_text())["recipe"] == written["recipe"]
    loaded, _ = load_pretrained(str(out))
    query = loaded.get_submodule("encoder.layer.0.attention.self.query").weight
    assert torch.count_nonzero(query) <= query.numel() // 2 + 4


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("", ("--granularity", "head,4x1", "--sparsity", "0.5"), "steps of their own"),
        ("", ("--granularity", "head", "--sparsity", "0.5", "--stream"), "a structure changes the"),
        (STEPS, ("--stream",), "a structure changes the whole model, which is streamed"),
        ("steps: head", (), "steps is 'head'; give a list"),
        ("steps: [head]", (), "step 1: 'head' is no mapping"),
        ("steps: [{granularity: head, sparsty: 1}]", (), "step 1: 'sparsty' is no argument"),
        ("steps: [{granularity: head}]", (), "step 1: no sparsity given"),
        (STEPS, ("--seed", "1"), "--seed is given, and"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    recipe: str, options: tuple[str, ...], message: str, model: Path, tmp_path: Path
) -> None:
    if recipe:
        (tmp_path / "steps.yaml").write_text(recipe)
        options = (*options, "--recipe", str(tmp_path / "steps.yaml"))
    assert message in refused(2, "prune", model, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_commas_in_brackets_do_not_separate() -> None:
    assert split_granularities("head,unit(round_to=16, keep=32), 4x1") == [
        "head",
        "unit(round_to=16, keep=32)",
        "4x1",
    ]


def test_defaults_follow_the_granularity() -> None:
    def chosen(granularity: str | None, has_texts: bool) -> tuple[object, object]:
        found = with_defaults({"granularity": granularity}, has_texts)
        return found["criterion"], found["recovery"]

    assert chosen(None, True) == ("sparsegpt", "least_squares")
    assert chosen("4x1", False) == ("magnitude", "none")
    assert chosen("head,unit", True) == ("fisher", "least_squares")
    assert chosen("expert,unit", True) == ("obs", "least_squares")
    assert chosen("head", False) == ("magnitude", "none")
    assert chosen("layer", True) == (None, "least_squares")
    assert chosen("layer", False) == ("last", "none")


def test_the_allocator_follows_the_criterion() -> None:
    def chosen(has_texts: bool = True, **given: str) -> tuple[object, object]:
        found = with_defaults({"allocator": None, **given}, has_texts)
        return found["criterion"], found["allocator"]

    assert chosen(granularity="unit(keep=4)") == ("fisher", "raw")
    assert chosen(granularity="unit", allocator="lamp") == ("fisher", "lamp")
    assert chosen(granularity="unit", criterion="obs") == ("obs", "uniform")
    assert chosen(granularity="unit", criterion="fisher") == ("fisher", "raw")
    assert chosen(granularity="4x1", criterion="fisher") == ("fisher", "uniform")
    assert chosen(granularity="head", has_texts=False) == ("magnitude", "uniform")


def test_units_of_recurrent_networks_are_scored_by_their_errors() -> None:
    found = with_defaults({"granularity": "unit"}, True, recurrent=True)
    assert (found["criterion"], found["allocator"]) == ("obs", "uniform")
    assert is_recurrent(torch.nn.Sequential(torch.nn.GRU(2, 3)))
    assert is_recurrent(torch.nn.ModuleList([torch.nn.LSTMCell(2, 3)]))
    assert not is_recurrent(torch.nn.Sequential(torch.nn.Linear(2, 3)))
