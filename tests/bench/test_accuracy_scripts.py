"""The tables learn-* of bench/accuracy.py: scripts of examples/ on a few made-up sentences."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse_engine.bench.machine import BusyMeter
from sparse_engine.errors import UsageError
from sparse_engine.training import Pruner

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # as Python does for a script

import accuracy
import accuracy_scripts
from accuracy_cases import sentence, tiny_encoder
from accuracy_scripts import ScriptSetting, ScriptTask, label, pattern
from accuracy_scripts_tasks import LEARNED

STEPS = "--steps 6 --prune-steps 24 --batch 4"
TAGS = ScriptTask(
    "learn-tags",
    "tag",
    "tags",
    f"--model bilstm {STEPS}",
    16,
    8,
    (("element", 0.5), ("4x1", 0.75)),
    (("4x1", 0.75),),
)


def write_tags(folder: Path) -> None:
    """Sentences whose words with an "e" have a tag, in one file."""
    source = random.Random(0)
    folder.mkdir()
    rows = [sentence(source).split() for _ in range(60)]
    lines = ["\n".join(f"{w}\t{'B-e' if 'e' in w else 'O'}" for w in words) for words in rows]
    (folder / "tags.txt").write_text("\n\n".join(lines) + "\n")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of the task, on one thread, and on a machine that is not measured."""
    write_tags(tmp_path / "tags")
    monkeypatch.setattr(accuracy, "LEARNED", (TAGS,))
    monkeypatch.setattr(accuracy, "NAMES", (TAGS.name,))
    monkeypatch.setattr(BusyMeter, "start", lambda self: 0.0)
    monkeypatch.setattr(BusyMeter, "look", lambda self: 0.0)
    model = tiny_encoder(tmp_path / "model").folder
    return [TAGS.name, *f"--data {tmp_path} --model {model} --out {tmp_path}/out".split()]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / f"out/accuracy-{TAGS.name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_model_has_a_row(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy.main([*options, "--seed", "1"])
    rows = rows_of(tmp_path)
    assert [row["criterion"] for row in rows] == ["dense"] * 2 + ["obs"] * 2 + ["random", "dense"]
    assert {row["seed"] for row in rows} == {1}
    reached = [row["reached"] for row in rows[2:]]
    assert reached == pytest.approx([0.5, 0.75, 0.75, 0.0], abs=0.01)
    names = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[4:10]]
    assert names == [
        "dense, size 16",
        "dense, size 8",
        "50% element",
        "75% 4x1",
        "75% 4x1, random",
        "dense, trained again",
    ]


def test_a_stopped_run_goes_on_with_the_dense_model_of_before(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = [*options, "--seed", "0", "--models", str(tmp_path / "models")]
    accuracy.main(seeded)
    path = tmp_path / f"out/accuracy-{TAGS.name}.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    train = accuracy_scripts.TRAINING.train

    def train_pruned(*args: Any, **options: Any) -> Any:
        assert isinstance(args[5], Pruner)  # no dense model is trained again
        return train(*args, **options)

    monkeypatch.setattr(accuracy_scripts.TRAINING, "train", train_pruned)
    accuracy.main(seeded)
    again, before = rows_of(tmp_path), [json.loads(line) for line in lines]
    assert [row["quality"] for row in again] == [row["quality"] for row in before]


def test_folds_are_the_seeds(tmp_path: Path) -> None:
    write_tags(tmp_path / "tags")
    task = replace(TAGS, seeds=tuple(range(10)), folds=True)
    tests = [
        task.given(tmp_path, None, ScriptSetting(seed=seed, size=8))[0].parts.test
        for seed in task.seeds
    ]
    rows = [tuple(row["input_ids"]) for part in tests for row in part]
    assert len(rows) == 60
    assert [len(part) for part in tests] == [6] * 10


def test_times_are_added_to_every_row(options: list[str], tmp_path: Path) -> None:
    accuracy.main([*options, "--seed", "0"])
    accuracy.main([*options, "--time"])
    rows = rows_of(tmp_path)
    assert len(rows) == 6
    assert all(row["ms"] > 0 and row["mb"] > 0 for row in rows)
    assert rows[3]["ms"] == rows[4]["ms"]  # of random weights, which have the same pattern
    assert rows[0]["ms"] == rows[5]["ms"]
    assert rows[3]["mb"] < rows[0]["mb"]


def test_the_recipes_remove_everything_in_the_first_half() -> None:
    for task in LEARNED:
        for setting in task.settings():
            recipe = task.recipe(setting, 100)
            assert list(recipe[-1]) == ["distil"]
            ends = [next(iter(part.values())).get("end", 0) for part in recipe]
            assert max(ends) <= 50


def test_a_pattern_with_cuts_is_smaller_and_has_zeros(tmp_path: Path) -> None:
    model = tiny_encoder(tmp_path / "model").dense
    before = sum(p.numel() for p in model.parameters())
    setting = ScriptSetting("obs", granularity="4x1", sparsity=0.75, training="cut", size=16)
    pattern(model, setting)
    layers = [m for m in model.encoder.modules() if isinstance(m, nn.Linear)]
    assert sum(p.numel() for p in model.parameters()) < before
    zeros = sum(int((m.weight == 0).sum()) for m in layers)
    assert zeros / sum(m.weight.numel() for m in layers) == pytest.approx(0.75, abs=0.02)
    assert label(setting) == "cut, 75% 4x1"
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_seed_without_rows_is_refused(options: list[str]) -> None:
    with pytest.raises(UsageError, match=r"--seed 7: learn-tags has the seeds \(0, 1\)"):
        accuracy.main([*options, "--seed", "7"])
