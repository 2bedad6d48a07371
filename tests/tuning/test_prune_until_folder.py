"""prune_until: folders of runs that were killed, damaged or belong to another run."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tuning_cases import ALL, FakeClock, Watched, network, same, zeros

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.tuning import journal


def killed(at: int) -> Callable[[nn.Module, int], None]:
    """A training that leaves the process in a round; otherwise it changes the kept weights."""

    def train(model: nn.Module, number: int) -> None:
        if number == at:
            raise SystemExit
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + 0.1 * torch.rand(p.shape))

    return train


@pytest.mark.parametrize("at", range(1, 8))
def test_a_killed_run_goes_on_to_the_same_result(at: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sparsities": se.Widen(0.5, 0.1, 0.0125), "max_drop": 0.01}
    whole = network()
    expected = se.prune_until(whole, Watched(0.731), train=killed(0), **options)
    assert len(expected.rounds) == 7
    folder = tmp_path / "run"
    model = network()
    with pytest.raises(SystemExit):
        se.prune_until(model, Watched(0.731), train=killed(at), folder=folder, **options)
    torch.rand(3)  # another process has other random numbers
    again = network()
    report = se.prune_until(again, Watched(0.731), train=killed(0), folder=folder, **options)
    assert same(again, whole)
    for one, other in zip(report.rounds, expected.rounds, strict=True):
        assert (one.sparsity, one.metric, one.verdict) == (
            other.sparsity,
            other.metric,
            other.verdict,
        )
    assert report.stop == expected.stop
    # A run that has ended is read from its folder.
    last = network()
    called = count()
    se.prune_until(
        last, Watched(0.731), train=named_killed(lambda *a: next(called)), folder=folder, **options
    )
    assert next(called) == 0
    assert same(last, whole)
    assert sorted(path.name for path in folder.iterdir()) == ["round-006.safetensors", "run.json"]


def named_killed(function: Any) -> Any:
    function.__name__ = "train"
    return function


def test_structures_come_back_from_a_folder(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 4))

    def metric(model: Any) -> float:
        return -float(model[0].out_features < 30)

    options: dict[str, Any] = {"granularity": "unit", "folder": tmp_path / "run"}
    model, again = build(), build()
    se.prune_until(model, metric, sparsities=ALL, **options)
    se.prune_until(again, metric, sparsities=ALL, **options)
    assert again[0].out_features == 40
    assert same(model, again)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(0.5), sparsities=ALL, folder=folder)
    before = (folder / "run.json").read_bytes()
    changed = network()
    with torch.no_grad():
        changed[0].weight[0, 0] += 1
    for model, options, key in (
        (network(), {"sparsities": [0.3]}, "sparsities"),
        (network(), {"max_drop": 0.5}, "max_drop"),
        (network(), {"granularity": "4x1"}, "methods"),
        (network(), {"train": killed(0)}, "train"),
        (changed, {}, "model"),
    ):
        dense = copy.deepcopy(model)
        arguments: dict[str, Any] = {"sparsities": ALL, "folder": folder, **options}
        with pytest.raises(UsageError, match=f"begun with another {key}"):
            se.prune_until(model, Watched(0.5), **arguments)
        assert same(model, dense)
    assert (folder / "run.json").read_bytes() == before


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, message in (
        ("texts", "is no folder of a run: it holds notes.txt"),
        ("damaged", "is no file of a run"),
        ("file", "exists"),
        ("none/run", "No such file"),
    ):
        with pytest.raises(SparseEngineError, match=message):
            se.prune_until(network(), Watched(1), folder=tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"rounds": 3},
        {"rounds": [3]},
        {"rounds": [{"number": "first"}]},
        {"dense": "1"},
        {"dense": None},
        {"dense": 10**400},
        {"rounds": []},
        {"state": None},
        {"state": "a\0b"},
        {"state": "../round-001.safetensors"},
        {"state": ".."},
        {"request": []},
    ],
)
def test_a_damaged_run_is_refused(change: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)
    values = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**values, **change}))
    model = network()
    dense = copy.deepcopy(model)
    with pytest.raises(InvalidFileError):
        se.prune_until(model, Watched(1), sparsities=[0.5], folder=folder)
    assert same(model, dense)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"sparsity": 0.6},
        {"metric": None},
        {"drop": 0.5},
        {"verdict": "failed"},
        {"verdict": "unfinished"},
        {"seconds": -1.0},
    ],
)
def test_rounds_that_do_not_follow_from_one_another_are_refused(
    change: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5, 0.7], folder=folder)
    values = json.loads((folder / "run.json").read_text())
    values["rounds"][0] |= change
    (folder / "run.json").write_text(json.dumps(values))
    model = network()
    with pytest.raises(InvalidFileError, match="round 1 in the folder does not follow"):
        se.prune_until(model, Watched(1), sparsities=[0.5, 0.7], folder=folder)
    assert same(model, network())


@pytest.mark.parametrize("place", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_state_that_is_no_file_is_refused(place: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)
    (folder / "round-001.safetensors").unlink()
    place(folder / "round-001.safetensors")
    with pytest.raises(InvalidFileError, match=r"is not a regular file|is a link"):
        se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def train(model: nn.Module, number: int) -> None:
        se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)

    report = se.prune_until(network(), Watched(1), train=train, folder=folder)
    assert report.reason == f"{folder} is being written by another process"


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    se.prune_until(network(), Watched(1), sparsities=[0.5], folder=folder)
    state = folder / "round-001.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[:-8])
    for _ in range(2):
        model = network()
        dense = copy.deepcopy(model)
        with pytest.raises(SparseEngineError, match=r"round-001.safetensors"):
            se.prune_until(model, Watched(1), sparsities=[0.5], folder=folder)
        assert same(model, dense)
        state.unlink(missing_ok=True)


def test_a_full_disk_keeps_the_best_state_and_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    write = journal.write_tensors

    def full(path: Path, tensors: Any) -> dict[str, str]:
        if "round-003" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return write(path, tensors)

    monkeypatch.setattr(journal, "write_tensors", full)
    model = network()
    report = se.prune_until(model, Watched(1), sparsities=ALL, folder=folder)
    assert report.stop == "error"
    assert report.reason.endswith("round-003.safetensors: No space left on device")
    assert "\n" not in report.reason
    assert [one.verdict for one in report.rounds] == ["passed"] * 3
    assert zeros(model) == pytest.approx(0.6, abs=0.01)  # the model has what could not be written
    assert sorted(path.name for path in folder.iterdir()) == ["round-002.safetensors", "run.json"]
    assert len(json.loads((folder / "run.json").read_text())["rounds"]) == 2
    monkeypatch.undo()
    again = network()
    report = se.prune_until(again, Watched(1), sparsities=ALL, folder=folder)
    assert report.sparsity == 0.8
    whole = network()
    se.prune_until(whole, Watched(1), sparsities=ALL)
    assert same(again, whole)


def test_a_larger_budget_goes_on_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeClock(monkeypatch)

    def train(model: nn.Module, number: int) -> None:
        fake.now += 10

    options: dict[str, Any] = {"sparsities": ALL, "train": train, "folder": tmp_path / "run"}
    report = se.prune_until(network(), Watched(1), budget=25, **options)
    assert (report.stop, report.sparsity) == ("budget", 0.4)
    report = se.prune_until(network(), Watched(1), budget=25, **options)
    assert (report.stop, report.sparsity) == ("budget", 0.4)
    report = se.prune_until(network(), Watched(1), budget=60, **options)
    assert (report.stop, report.sparsity) == ("list", 0.8)
