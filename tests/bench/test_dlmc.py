"""bench/dlmc.py reads patterns from folders and archives, and refuses damaged ones in one line."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path, PurePath
from types import ModuleType

import pytest
import torch
from scripts import load_script

from sparse_engine.errors import UsageError

# 3 x 4, the second row empty.
TINY = "3, 4, 4\n0 2 2 4 \n0 3 1 2 \n"


@pytest.fixture(scope="module")
def dlmc() -> ModuleType:
    return load_script("dlmc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain, compressed, and in an archive; one folder states its sparsity."""
    deep = tmp_path / "data" / "magnitude" / "0.7"
    deep.mkdir(parents=True)
    (deep / "body_a_fully_connected.smtx").write_text(TINY)
    (tmp_path / "data" / "b.smtx.gz").write_bytes(gzip.compress(TINY.encode()))
    (tmp_path / "data" / "notes.txt").write_text("no pattern")
    with tarfile.open(tmp_path / "data" / "c.tar.gz", "w:gz") as archive:
        for name, text in (("x/0.9/c.smtx", TINY), ("x/readme", "no pattern")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return tmp_path / "data"


def test_pattern_and_values(dlmc: ModuleType) -> None:
    pattern = dlmc.parse_smtx(TINY, "tiny")
    expected = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    assert torch.equal(pattern.weight() != 0, expected)
    assert dlmc.parse_smtx("2, 3, 0\n0 0 0\n", "empty").weight().count_nonzero() == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3, 4\n0 2 2 4\n0 3 1 2\n",
        "a, b, c\n",
        "3, 4, 4\n0 2 4\n0 3 1 2\n",
        "3, 4, 4\n0 3 2 4\n0 3 1 2\n",
        "3, 4, 4\n1 2 2 4\n0 3 1 2\n",
        "3, 4, 4\n0 2 2 4\n0 3 1\n",
        "3, 4, 4\n0 2 2 4\n",
        "3, 4, 4\n0 2 2 4\n0 4 1 2\n",
        "3, 4, 4\n0 2 2 4\n0 -1 1 2\n",
        "3, 4, 4\n0 2 2 4\n0 0 1 2\n",
        "3, 4, 4\n0 2 2 4\n0 x 1 2\n",
        "3, 4, 4\n0 2 2 4\n0 3 1 99999999999999999999999\n",
        "-3, 4, 4\n\n\n",
        "3, 999999999999, 4\n0 2 2 4\n0 3 1 2\n",
    ],
)
def test_damaged_patterns_are_refused(dlmc: ModuleType, text: str) -> None:
    with pytest.raises(UsageError, match=r"^here\.smtx: ") as error:
        dlmc.parse_smtx(text, "here.smtx")
    assert len(str(error.value).splitlines()) == 1


def test_files_are_found_wherever_they_lie(dlmc: ModuleType, folder: Path) -> None:
    found = dict(dlmc.find_smtx(folder))
    assert {str(name) for name in found} == {
        "b.smtx.gz",
        "c.tar.gz/x/0.9/c.smtx",
        "magnitude/0.7/body_a_fully_connected.smtx",
    }
    assert set(found.values()) == {TINY.encode()}
    with pytest.raises(UsageError, match="not a folder"):
        list(dlmc.find_smtx(folder / "none"))


@pytest.mark.parametrize("name", ["d.smtx.gz", "d.tar.gz"])
def test_damaged_archives_are_refused(dlmc: ModuleType, folder: Path, name: str) -> None:
    whole = (folder / ("b.smtx.gz" if name == "d.smtx.gz" else "c.tar.gz")).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"nonsense"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            list(dlmc.find_smtx(folder))


def test_sparsity_is_the_folders_or_the_patterns_own(dlmc: ModuleType) -> None:
    pattern = dlmc.parse_smtx(TINY, "tiny")
    assert dlmc.stated_sparsity(PurePath("x/0.7/a.smtx"), pattern) == 0.7
    assert dlmc.stated_sparsity(PurePath("x/128/a.smtx"), pattern) == 0.67
    assert dlmc.stated_sparsity(PurePath("a.smtx"), pattern) == 0.67


def test_table_and_lines(
    dlmc: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    dlmc.main([str(folder), "-m", "2", "--rounds", "1", "-o", str(out)])
    first, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert "cpu" in first["conditions"]
    assert [line["stated_sparsity"] for line in lines] == [0.67, 0.9, 0.7]
    assert all(line["time_us"] > 0 and set(line["peers"]) >= {"torch"} for line in lines)
    table = capsys.readouterr().out
    assert "| a | 3x4 | 0.7 |" in table
    assert len([line for line in table.splitlines() if line.startswith("| 0.")]) == 3
    for bad in (["-m", "0"], ["--match", "nowhere"], ["--rounds", "0"]):
        with pytest.raises(UsageError):
            dlmc.main([str(folder), *bad])
