"""sparse-engine prune-until: its table, the folder it writes, its exit codes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from command_line import ok, refused, run

from sparse_engine.tuning import UntilReport
from sparse_engine.tuning.clock import BudgetSpent

QUICK = ("--samples", "20", "--steps", "3")


def test_the_best_state_is_written(model: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, page, rounds = tmp_path / "pruned", tmp_path / "page.html", tmp_path / "rounds"
    told = ok("prune-until", model, out, "--calibration", texts, *QUICK, "--max-drop", "0.5",
              "--sparsity", "0.3,0.6", "--granularity", "4x1", "--report", page,
              "--folder", rounds, COLUMNS="80")  # fmt: skip
    assert max(map(len, told.splitlines())) <= 80
    assert told.splitlines()[0].split()[:3] == ["round", "sparsity", "cosine"]
    assert "round 2 is kept: sparsity 0.6, cosine to dense " in told
    assert "pruned until its outputs move" in page.read_text()
    record = json.loads((out / "pruning.json").read_text())
    assert record["recipe"]["sparsity"] == 0.6
    assert record["recipe"]["granularity"] == "4x1"
    report = UntilReport.from_dict(record["rounds"])
    assert [one.passed for one in report.rounds] == [True, True]
    told = ok("convert", out, tmp_path / "package", "--verify")
    # The rounds are there: the same command reads them, and the model is the same.
    again = tmp_path / "again"
    ok("prune-until", model, again, "--calibration", texts, *QUICK, "--max-drop", "0.5",
       "--sparsity", "0.3,0.6", "--granularity", "4x1", "--folder", rounds)  # fmt: skip
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()
    # Its pruning.json is a recipe of prune.
    ok("prune", model, tmp_path / "once", "--recipe", out, "--calibration", texts)


def test_without_a_round_that_passes_nothing_is_written(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pruned"
    done = run("prune-until", model, out, "--calibration", texts, *QUICK, "--max-drop", "0",
               "--sparsity", "0.9")  # fmt: skip
    assert done.returncode == 2
    assert "no round passed" in done.stdout
    assert "is not written: the metric dropped too far in the last round" in done.stderr
    assert not out.exists()


def test_a_budget_that_is_too_small_names_the_options(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    with mock.patch("sparse_engine.tuning.retrain.Retrain.run", side_effect=BudgetSpent):
        done = run("prune-until", model, tmp_path / "pruned", "--calibration", texts, *QUICK,
                   "--budget", "1h")  # fmt: skip
    assert done.returncode == 2
    assert "inside of a round; give a larger --budget or fewer --steps" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt, 130, "interrupted"), (RuntimeError("full"), 2, "RuntimeError: full")],
)
def test_a_run_that_is_cut_short_writes_its_best_state(
    error: BaseException, code: int, message: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pruned"
    with mock.patch("sparse_engine.tuning.retrain.Retrain.run", side_effect=[None, error]):
        done = run("prune-until", model, out, "--calibration", texts, *QUICK, "--max-drop", "1",
                   "--sparsity", "0.3,0.6")  # fmt: skip
    assert (done.returncode, (out / "pruning.json").exists()) == (code, True)
    assert message in done.stderr
    assert "round 1 is kept" in done.stdout


def test_refused_before_the_model_is_loaded(model: Path, texts: Path, tmp_path: Path) -> None:
    start = ("prune-until", model, tmp_path / "out", "--calibration", texts)
    with mock.patch("sparse_engine.io.load_pretrained", side_effect=AssertionError):
        assert "--sparsity" in refused(2, *start, "--sparsity", "0.5,many")
        assert "ascending" in refused(2, *start, "--sparsity", "0.5,0.4")
        assert "budget '2 days'" in refused(2, *start, "--budget", "2 days")
        assert "speedup" in refused(2, *start, "--speedup", "0.5")
        assert "criterion" in refused(2, *start, "--criterion", "best")
        assert "name a .html file" in refused(2, *start, "--report", tmp_path / "a.png")
        assert "exists" in refused(2, "prune-until", model, model)
        assert "give some" in refused(2, *start[:-1], "none")
