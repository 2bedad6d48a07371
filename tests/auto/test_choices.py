"""The memory of format="auto": only whole entries count, and damage is forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sparse_engine as se
from sparse_engine.auto import cache as choices
from sparse_engine.auto import format as choose

KEY = {"formats": ["csr"], "tokens": [1, 8], "shape": [4, 4]}
TIMES = {"dense": {1: 2.0, 8: 3.0}, "csr": {1: 1.0, 8: 1.5}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_remembers_by_key(folder: Path) -> None:
    assert choices.recall(KEY) is None
    choices.remember(KEY, TIMES)
    assert choices.recall(KEY) == TIMES
    assert choices.recall({**KEY, "shape": [4, 5]}) is None
    assert [p.name for p in folder.iterdir()] == ["choices.json"]


@pytest.mark.parametrize(
    "entry",
    [
        {"dense": {"1": 2.0, "8": 3.0}},
        {"dense": {"1": 2.0}, "csr": {"1": 1.0, "8": 1.5}},
        {"dense": {"1": "x", "8": 3.0}, "csr": {"1": 1.0, "8": 1.5}},
        {"dense": {"1": -2.0, "8": 3.0}, "csr": {"1": 1.0, "8": 1.5}},
        {"dense": {"1": float("nan"), "8": 3.0}, "csr": {"1": 1.0, "8": 1.5}},
        [1],
        None,
    ],
)
def test_incomplete_entries_do_not_count(folder: Path, entry: object) -> None:
    folder.mkdir()
    (folder / "choices.json").write_text(json.dumps({choices._text(KEY): entry}))
    assert choices.recall(KEY) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_damaged_files_are_forgotten(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "choices.json").write_text(text)
    assert choices.recall(KEY) is None
    choices.remember(KEY, TIMES)
    assert choices.recall(KEY) == TIMES


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", str(tmp_path / "file" / "cache"))
    choices.remember(KEY, TIMES)
    assert choices.recall(KEY) is None


def test_the_oldest_entries_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "MAX_ENTRIES", 2)
    for out in range(3):
        choices.remember({**KEY, "shape": [out, 4]}, TIMES)
    found = [choices.recall({**KEY, "shape": [out, 4]}) for out in range(3)]
    assert found == [None, TIMES, TIMES]


def test_auto_measures_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 64) * (torch.rand(64, 64) > 0.9)
    first = choose.choose_format(weight, se.SparseConfig())
    monkeypatch.setattr(choose, "_measure", lambda *args: pytest.fail("measured again"))
    again = choose.choose_format(weight, se.SparseConfig())
    assert again.format == first.format
    assert again.times_us == first.times_us
    assert "measured before" in again.reason
