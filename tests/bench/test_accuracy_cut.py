"""The tables of bench/accuracy.py about structures, on a tiny encoder and made-up sentences."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # as Python does for a script

import accuracy
import accuracy_cut
import accuracy_cut_steps
from accuracy_cases import tiny_encoder, write_sick
from accuracy_cut_steps import BASE, Variant

from sparse_engine import SparseConfig


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run on a tiny encoder; no call is timed, and nothing is chosen by time."""

    def seconds(calls: Any, rounds: int = 0) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: 1.0 / i for i, name in enumerate(calls, 1)}

    monkeypatch.setattr(accuracy_cut, "time_in_turn", seconds)
    monkeypatch.setattr(accuracy_cut_steps, "time_in_turn", seconds)
    monkeypatch.setattr(accuracy_cut_steps, "CONFIG", SparseConfig("csr"))
    write_sick(tmp_path, random.Random(0))
    sizes = {"num_hidden_layers": 6, "intermediate_size": 64, "initializer_range": 0.5}
    model = tiny_encoder(tmp_path / "model", **sizes).folder
    paths = {"--data": tmp_path, "--model": model, "--out": tmp_path}
    return [str(word) for option in paths.items() for word in option]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_and_two_layers_of_six(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy.main(["cut-layers", *options])
    dense, *rows = rows_of(tmp_path / "accuracy-cut-layers.jsonl")
    assert dense["parameters"] == dense["promised"] == 1.0
    methods = [list(method) for method in accuracy_cut.CutLayers.methods]
    for count, part in ((1, rows[: len(methods)]), (2, rows[len(methods) :])):
        assert [[row["criterion"], row["recovery"]] for row in part] == methods
        for row in part:
            assert row["promised"] == pytest.approx(6 / (6 - count), abs=0.01)
            assert row["cosine"] < 1
    printed = capsys.readouterr().out
    assert all(f"{share} layer" in printed for share in ("17%", "33%"))


def test_steps_are_measured_in_one_turn(
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variants = (Variant(0, "head,unit"), BASE, Variant(0.8, "unit", "random"))
    monkeypatch.setattr(accuracy_cut_steps, "VARIANTS", variants)
    options += ["--packages", str(tmp_path / "packages")]
    accuracy.main(["cut-steps", *options])
    path = tmp_path / "accuracy-cut-steps.jsonl"
    rows = rows_of(path)
    names = ["dense", "head,unit", "4x1 80%", "random unit + 4x1 80%"]
    assert [row["pruned"] for row in rows] == names
    assert [row["x dense"] for row in rows] == [1, 2, 3, 4]
    assert [row["x 4x1"] for row in rows] == [0.33, 0.67, 1, 1.33]
    # A layer has 4 x 16 x 16 weights of attention and 2 x 16 x 64 of the feed-forward.
    assert [row["left"] for row in rows] == pytest.approx([1, 0.5, 0.2, 0.2 * 2 / 3], abs=5e-3)
    assert rows[0]["cosine"] == 1
    assert max(row["cosine"] for row in rows[1:]) < 1
    assert all("cpu" in row["conditions"] for row in rows)
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in names)

    def pruned_again(*_: Any, **__: Any) -> None:
        pytest.fail("a package that is there is not made again")

    monkeypatch.setattr(accuracy_cut_steps, "convert", pruned_again)
    accuracy.main(["cut-steps", *options])
    assert [row["cosine"] for row in rows_of(path)[4:]] == [row["cosine"] for row in rows]


def test_the_largest_variants_fit_the_columns() -> None:
    row = {"left": 0.133, "rho": 76.36, "cosine": 0.9715, "ms": 12.3, "x dense": 3.21}
    rows = [
        {"pruned": str(variant), "x 4x1": 1.31, "busy": 0.5} | row
        for variant in accuracy_cut_steps.VARIANTS
    ]
    *lines, _, busy = accuracy_cut_steps.table(rows).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 80
    assert busy == "The machine was busy (50%): these times are no measurement."
