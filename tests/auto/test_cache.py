"""The measurement cache of format="auto": incomplete entries and damaged files count as empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_engine.auto import cache
from sparse_engine.auto.cache import Measurement

KEY = {"formats": ["csr"], "tokens": [1, 8], "shape": [4, 4]}
TIMES = {"dense": {1: 2.0, 8: 3.0}, "csr": {1: 1.0, 8: 1.5}}
NBYTES = {"dense": 64, "csr": 40}
MEASUREMENT = Measurement(TIMES, NBYTES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_loads_what_was_stored_for_an_equal_key(folder: Path) -> None:
    assert cache.load(KEY) is None
    cache.store(KEY, MEASUREMENT)
    assert cache.load(KEY) == MEASUREMENT
    assert cache.load({**KEY, "shape": [4, 5]}) is None
    assert [p.name for p in folder.iterdir()] == ["choices.json"]


@pytest.mark.parametrize(
    "entry",
    [
        {"times_us": {"dense": {"1": 2.0, "8": 3.0}}, "nbytes": NBYTES},
        {"times_us": {"dense": {"1": 2.0}, "csr": {"1": 1.0, "8": 1.5}}, "nbytes": NBYTES},
        {"times_us": {**TIMES, "csr": {"1": "x", "8": 3.0}}, "nbytes": NBYTES},
        {"times_us": {**TIMES, "csr": {"1": -2.0, "8": 3.0}}, "nbytes": NBYTES},
        {"times_us": {**TIMES, "csr": {"1": float("nan"), "8": 3.0}}, "nbytes": NBYTES},
        {"times_us": TIMES},
        {"times_us": TIMES, "nbytes": {"dense": 64}},
        {"times_us": TIMES, "nbytes": {"dense": 64, "csr": None}},
        TIMES,
        [1],
        None,
    ],
)
def test_incomplete_entries_count_as_missing(folder: Path, entry: object) -> None:
    folder.mkdir()
    (folder / "choices.json").write_text(json.dumps({cache._text(KEY): entry}))
    assert cache.load(KEY) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_damaged_files_count_as_empty(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "choices.json").write_text(text)
    assert cache.load(KEY) is None
    cache.store(KEY, MEASUREMENT)
    assert cache.load(KEY) == MEASUREMENT


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", str(tmp_path / "file" / "cache"))
    cache.store(KEY, MEASUREMENT)
    assert cache.load(KEY) is None


def test_the_oldest_entries_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_ENTRIES", 2)
    for out in range(3):
        cache.store({**KEY, "shape": [out, 4]}, MEASUREMENT)
    found = [cache.load({**KEY, "shape": [out, 4]}) for out in range(3)]
    assert found == [None, MEASUREMENT, MEASUREMENT]
