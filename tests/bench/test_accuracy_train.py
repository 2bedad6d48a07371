"""The tables train-* of bench/accuracy.py: a small network on noise; no call is timed."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from sparse_engine.bench.machine import BusyMeter
from sparse_engine.errors import UsageError

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # as Python does for a script

import accuracy
import accuracy_train
from accuracy_rows import Setting
from accuracy_train import TrainSetting
from accuracy_train_tasks import TrainedTask, by_length


class Noise(TrainedTask):
    """A task without data: the distance to the dense model on noise."""

    name, calibration = "train-tagger", "noise"
    columns = ("distance",)
    points = (("element", 0.5), ("2x1", 0.75))
    steps, batch, rate = 40, 16, 1e-2
    distil: ClassVar[dict[str, Any]] = {}
    tokens, samples = 8, 64

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.base = self
        self._dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        self._dense.requires_grad_(False)
        self._test = torch.randn(64, 8)
        self.evaluated = 0

    @property
    def dense(self) -> Any:
        return self._dense

    def arguments(self, setting: Setting) -> dict[str, Any]:
        source = torch.Generator().manual_seed(setting.seed)
        return {"calibration": [torch.randn(setting.samples, 8, generator=source)]}

    def batches(self, setting: TrainSetting) -> Iterator[Tensor]:
        source = torch.Generator().manual_seed(setting.seed)
        while True:
            yield torch.randn(setting.batch, 8, generator=source)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.evaluated += 1
        with torch.no_grad():
            return {"distance": float((model(self._test) - self.dense(self._test)).square().mean())}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Noise:
    task = Noise()
    monkeypatch.setitem(accuracy.TRAINED, task.name, lambda given: task)
    return task


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return ["train-tagger", "--data", str(tmp_path), "--out", str(tmp_path)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "accuracy-train-tagger.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_training_recovers_what_one_shot_lost(
    task: Noise, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy.main(options)
    dense, *rows = rows_of(tmp_path)
    assert dense["distance"] == 0
    # Two points; two seeds of obs and one of the control; each before and after training.
    assert len(rows) == 2 * 3 * 2
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert before["training"] == "none"
        assert after["training"] == "hold"
        assert after["steps"] == 40
        assert [*after["recipe"]["modifiers"][0]] == ["hold"]
        assert after["distance"] < before["distance"]
        assert after["seconds"] >= 0
        assert after["reached"] == after["sparsity"]
    table = capsys.readouterr().out
    assert all(len(line) <= 80 for line in table.splitlines())
    # The figures of two seeds are one row.
    chosen = {"criterion": "obs", "sparsity": 0.5, "training": "none"}
    pair = [row["distance"] for row in rows if row.items() >= chosen.items()]
    assert len(pair) == 2
    [line] = [x for x in table.splitlines() if "| obs" in x and "none" in x and "50%" in x]
    assert f"{sum(pair) / 2:.3f}" in line


def test_rows_are_not_made_twice(task: Noise, options: list[str], tmp_path: Path) -> None:
    accuracy.main([*options, "--granularity", "2x1", "--seed", "1"])
    assert [row["seed"] for row in rows_of(tmp_path)] == [0, 1, 1]  # dense, and obs twice
    evaluated = task.evaluated
    accuracy.main([*options, "--granularity", "2x1", "--seed", "1"])
    assert task.evaluated == evaluated
    with pytest.raises(UsageError, match="--granularity 16x1: train-tagger has no such row"):
        accuracy.main([*options, "--granularity", "16x1"])


def test_a_training_is_the_same_when_it_is_repeated(task: Noise) -> None:
    setting = TrainSetting("obs", "none", "element", 0.5, "noise", 64, 0, training="hold")
    setting = replace(setting, steps=5, batch=8, rate=1e-2)
    found = []
    for _ in range(2):
        model = accuracy_train.pruned(task, accuracy_train.one_shot(setting))
        accuracy_train.train(task, model, setting)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *found))
    assert float((model[0].weight == 0).float().mean()) == 0.5


def test_a_gradual_recipe_begins_with_the_dense_model(task: Noise) -> None:
    setting = TrainSetting("magnitude", "none", "element", 0.5, training="gradual")
    setting = replace(setting, samples=64, steps=20, batch=8, rate=1e-2)
    assert accuracy_train.one_shot(setting) == TrainSetting()
    model = accuracy_train.pruned(task, TrainSetting())
    accuracy_train.train(task, model, setting)
    assert float((model[0].weight == 0).float().mean()) == 0.5
    assert bool(task.dense[0].weight.all())


def test_times_are_added_to_rows(
    task: Noise,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = []

    class Times:
        def __init__(self, model: nn.Module, target: Any, inputs: Any, dense: nn.Module) -> None:
            assert dense is task.dense
            self.zeros = float((model[0].weight == 0).float().mean())

        def measure(self, weights: dict[str, Any]) -> SimpleNamespace:
            measured.append(self.zeros)
            return SimpleNamespace(ms=1 - self.zeros, dense_ms=1.0, nbytes=10_000)

    monkeypatch.setattr(accuracy_train, "Machine", Times)
    monkeypatch.setattr(accuracy_train, "inputs_of", lambda model, tokens, batches: ())
    accuracy.main([*options, "--seed", "0"])
    before = rows_of(tmp_path)
    monkeypatch.setattr(BusyMeter, "look", lambda self: 0.9)
    capsys.readouterr()
    accuracy.main([*options, "--time"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[-3].strip() for line in lines if "element" in line] == ["busy"] * 4
    assert all(len(line) <= 80 for line in lines)
    rows = rows_of(tmp_path)
    assert measured == [0.0, 0.5, 0.75]  # once for each pattern
    for old, new in zip(before, rows, strict=True):
        assert new.items() >= old.items()
        assert new["ms"] == pytest.approx(1 - new["sparsity"])
        assert new["dense_ms"] == 1.0
        assert new["time_busy"] == 0.9
        assert "cpu" in new["time_conditions"]
    assert rows[0]["mb"] == pytest.approx(4 * (8 * 16 + 16 + 16 * 4 + 4) / 1e6, abs=5e-4)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [accuracy_train.rate(step / 100) for step in range(101)]
    assert rates[0] > 0
    assert max(rates) == rates[5] == 1.0
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_batches_hold_every_row_once() -> None:
    rows = [[0] * length for length in (3, 1, 4, 1, 5, 9, 2)]
    found = list(by_length(rows, 3, random.Random(0)))
    assert sorted(map(len, found)) == [1, 3, 3]
    lengths = sorted([len(row) for row in batch] for batch in found)
    assert lengths == [[1, 1, 2], [3, 4, 5], [9]]
