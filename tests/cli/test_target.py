"""`prune` with a target: options, tables, and refusals before the model is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import ok, refused, run


def test_a_count_is_met(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--params", 14_000, "--search-seconds", 1, "--criterion", "wanda")
    done = run(
        "prune", model, out, *options, "--granularity", "element,4x1", "--calibration", texts
    )
    assert done.returncode == 0, done.stderr
    assert "target params 14000: predicted" in done.stdout
    assert "granularity" in done.stdout
    found = json.loads((out / "pruning.json").read_text())["target"]
    assert found["measured"] <= 14_000
    assert len(found["layers"]) == 12
    assert {row["granularity"] for row in found["layers"]} <= {"element", "4x1"}


def test_structures_and_zeros_for_one_target(model: Path, texts: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    options = ("--params", 14_000, "--search-seconds", 0, "--calibration", texts)
    told = ok("prune", model, out, *options, "--granularity", "head,unit(keep=2),4x1", COLUMNS="80")
    assert "error of the outputs" in told
    assert ", chosen" in told
    found = json.loads((out / "pruning.json").read_text())
    assert found["target"]["measured"] <= 14_000
    assert [row["share"] for row in found["target"]["shares"]] == [0.0, 0.125, 0.25, 0.5]
    ok("prune", model, again, "--recipe", out)
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()


def test_the_tables_fit_a_terminal(model: Path, texts: Path, tmp_path: Path) -> None:
    options = ("--flops", 20_000, "--search-seconds", 0, "--calibration", texts)
    told = ok("prune", model, tmp_path / "out", *options, COLUMNS="80")
    tables = told.split("12 layers (")[0]
    assert "target flops 20000" in tables
    assert max(map(len, tables.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--speedup", 0.5), "speedup 0.5: give a number above 1"),
        (("--speedup", 2, "--params", 100), "got speedup and params"),
        (("--speedup", 2, "--sparsity", 0.5), "not both"),
        (("--speedup", 2, "--tokens", 0), "tokens 0"),
        (("--speedup", 2, "--dtype", "float8"), "dtype 'float8'"),
        (("--sparsity", 0.5, "--tokens", 8), "--tokens describes a target: give --speedup"),
        (("--sparsity", 0.5, "--search-seconds", 1), "--search-seconds describes a target"),
        (("--speedup", 2, "--calibration", "none"), "needs calibration inputs"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[object, ...], message: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    more: tuple[object, ...] = () if "calibration" in message else ("--calibration", texts)
    assert message in refused(2, "prune", model, tmp_path / "out", *options, *more)


def test_out_of_reach(model: Path, texts: Path, tmp_path: Path) -> None:
    options = ("--params", 5, "--calibration", texts)
    line = refused(2, "prune", model, tmp_path / "out", *options)
    assert "params 5 is out of reach: the best is" in line
    assert not (tmp_path / "out").exists()


def test_a_target_is_not_streamed(model: Path, texts: Path, tmp_path: Path) -> None:
    options = ("--params", 14_000, "--stream", "--calibration", texts)
    line = refused(2, "prune", model, tmp_path / "out", *options)
    assert "a target times the whole model, which is streamed: leave it out" in line
