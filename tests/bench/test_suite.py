"""bench/suite.py goes on where it stopped; no test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from sparse_engine.errors import UsageError

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    return load_script("suite")


TINY = (
    "--shapes 16x24,24x16 --only dtype=float32 --only sparsity=0.5,0.9 --only tokens=1,3 "
    "--only format=csr,nm:2:4 --against torch --rounds 1"
).split()
POINTS = 2 * 2 * (2 + 1)  # shapes x tokens x (csr at two sparsities, nm at one)


def results(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_goes_on_where_it_stopped(
    suite: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "suite.jsonl"
    run = [*TINY, "--out", str(out)]
    suite.main([*run, "--minutes", "0"])
    assert [set(line) for line in results(out)] == [{"conditions"}]
    assert f"{POINTS} points are left" in capsys.readouterr().err

    suite.main(run)
    lines = [line for line in results(out) if "target" in line]
    assert len(lines) == POINTS
    assert {line["target"] for line in lines if line["format"] == "nm:2:4"} == {0.5}
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| dtype, format, tokens | 50% | 90% |"
    assert len(table) == 2 + 4
    assert (tmp_path / "suite-float32.png").read_bytes()[:4] == b"\x89PNG"

    # Nothing is left, so nothing is measured or written.
    before = out.read_bytes()
    suite.main(run)
    assert out.read_bytes() == before

    # A run that was killed while it wrote: its last line is measured again.
    out.write_bytes(before[:-40])
    suite.main(run)
    again = results(out)
    assert len([line for line in again if "target" in line]) == POINTS
    assert len([line for line in again if "conditions" in line]) == 3
    points = [suite.point_of(line) for line in again if "target" in line]
    assert len(set(points)) == POINTS


def test_half_a_line_is_all_there_is(suite: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "suite.jsonl"
    out.write_text('{"conditions": {"cp')
    assert suite.read_results(out) == []
    assert out.read_bytes() == b""
    assert suite.read_results(tmp_path / "none.jsonl") == []


def test_other_conditions_and_other_files_are_refused(suite: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "suite.jsonl"
    out.write_text('{"conditions": {"cpu": "abacus"}}\n')
    with pytest.raises(UsageError, match="abacus"):
        suite.main([*TINY, "--out", str(out)])
    for text in ("no json\n{}\n", "3\n"):
        out.write_text(text)
        with pytest.raises(UsageError, match="not a file of results"):
            suite.main([*TINY, "--out", str(out)])


@pytest.mark.parametrize(
    "options",
    [
        "--shapes 16",
        "--shapes 16xx",
        "--only colour=red",
        "--only dtype=",
        "--only dtype=int4",
        "--only sparsity=2",
        "--only tokens=0",
        "--against abacus",
    ],
)
def test_bad_options_are_refused(suite: ModuleType, tmp_path: Path, options: str) -> None:
    out = tmp_path / "suite.jsonl"
    with pytest.raises(UsageError):
        suite.main(["--quick", "--against", "torch", "--out", str(out), *options.split()])
    assert not out.exists()


def test_plan_keeps_token_counts_together(suite: ModuleType) -> None:
    points = suite.Plan().points()
    assert len(points) == len(set(points))
    assert len(suite.QUICK.points()) == 16
    few = [m for m in suite.TOKENS if m <= suite.DECODE_TOKENS]
    decode = (len(suite.DECODE_FORMATS) - 1) * len(suite.SPARSITIES) + 1  # N:M has one sparsity
    rest = (len(suite.FORMATS) - len(suite.DECODE_FORMATS)) * len(suite.SPARSITIES)
    packed = len(suite.DTYPES) * len(suite.SHAPES)
    assert len(points) == packed * (rest * len(suite.TOKENS) + decode * len(few))
    for i in range(0, 50, len(suite.TOKENS)):
        assert [point.m for point in points[i : i + len(suite.TOKENS)]] == list(suite.TOKENS)
