"""bench compare: ratios of the right points, and what differs between machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_engine.bench.compare import compare
from sparse_engine.errors import InvalidFileError, UsageError


def row(time: float, **other: Any) -> dict[str, Any]:
    point = {"op": "linear", "n": 8, "k": 4, "m": 1, "dtype": "float32", "sparsity": 0.5}
    return {**point, "format": "csr", "isa": "avx2", "threads": 2, "time_us": time, **other}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_ratios_of_points_that_both_have(tmp_path: Path) -> None:
    old = write(tmp_path / "old", [row(10, speedup=2.0), row(20, m=2), row(5, format="sellp")])
    new = write(tmp_path / "new", [row(40, m=2), row(5, speedup=3.0), row(5, m=3)])
    found = compare(old, new)
    assert [(r.m, r.ratio) for r in found.rows] == [(2, 0.5), (1, 2.0)]
    assert (found.rows[1].old_speedup, found.rows[1].new_speedup) == (2.0, 3.0)
    assert (found.only_old, found.only_new) == (1, 1)
    assert found.mean_ratio == pytest.approx(1.0)
    assert found.differences == ()


def test_lines_of_the_suite_and_conditions(tmp_path: Path) -> None:
    """JSON lines with conditions once, against a list whose rows have them each."""
    old = tmp_path / "old.jsonl"
    lines = [{"conditions": {"cpu": "A", "rounds": 5}}, row(8, target=0.5)]
    old.write_text("\n".join(map(json.dumps, lines)))
    about = {"cpu": "B", "torch": "2.13"}
    new = write(tmp_path / "new", [row(4, isa="avx512", threads=4, conditions=about)])
    found = compare(old, new)
    assert [r.ratio for r in found.rows] == [2.0]
    assert found.differences == (
        "cpu: A > B",
        "isa: avx2 > avx512",
        "threads: 2 > 4",
        "torch: unknown > 2.13",
    )


def test_several_levels_in_a_file_are_points_of_their_own(tmp_path: Path) -> None:
    rows = [row(10, isa="scalar"), row(5, isa="avx2")]
    old, new = write(tmp_path / "old", rows), write(tmp_path / "new", rows[::-1])
    assert [(r.isa, r.ratio) for r in compare(old, new).rows] == [("avx2", 1.0), ("scalar", 1.0)]


def test_what_auto_chose_is_no_part_of_the_point(tmp_path: Path) -> None:
    old = write(tmp_path / "old", [row(10, format="auto:csr")])
    new = write(tmp_path / "new", [row(5, format="auto:sellp")])
    assert compare(old, new).rows[0].format == "auto:csr > auto:sellp"


@pytest.mark.parametrize(
    ("spread", "apart"), [((11.0, 12.0), True), ((9.0, 12.0), False), (None, None)]
)
def test_spreads_that_overlap(
    spread: tuple[float, float] | None, apart: bool | None, tmp_path: Path
) -> None:
    old = write(tmp_path / "old", [row(10, spread_us={"time": [9.5, 10.5]})])
    new = write(tmp_path / "new", [row(11, **({"spread_us": {"time": spread}} if spread else {}))])
    assert compare(old, new).rows[0].apart is apart


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "3",
        "[3]",
        "[]",
        '[{"median_ms": 3}]',
        json.dumps([row(0)]),
        json.dumps([row(float("nan"))]),
        json.dumps([row(1, n="8")]),
        json.dumps([row(1, isa=[1])]),
        json.dumps([row(1, conditions=3)]),
        "[" * 100_000,
    ],
)
def test_files_that_are_no_figures(text: str, tmp_path: Path) -> None:
    good = write(tmp_path / "good", [row(1)])
    bad = tmp_path / "bad"
    bad.write_text(text)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises((UsageError, InvalidFileError)):
            compare(*pair)


def test_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no point in common"):
        compare(write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1, m=9)]))
