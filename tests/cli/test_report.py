"""prune --report and --examples: what is written, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import ok, refused
from html_page import outside_references, parsed

from sparse_engine.pruning import PruneReport

pytest.importorskip("matplotlib")


def test_prune_writes_a_page(model: Path, texts: Path, tmp_path: Path) -> None:
    lines, page = tmp_path / "lines.txt", tmp_path / "report.html"
    lines.write_text("the cat sat\na dog ran far away\n")
    ok("prune", model, tmp_path / "pruned", "--sparsity", "0.5", "--calibration", texts,
       "--samples", "8", "--report", page, "--examples", lines)  # fmt: skip
    html = page.read_text()
    assert outside_references(html) == []
    text = parsed(html).text
    assert "model, pruned" in text
    assert "a dog ran far away" in text
    report = PruneReport.from_dict(json.loads((tmp_path / "pruned" / "pruning.json").read_text()))
    assert [example.text for example in report.examples] == lines.read_text().splitlines()
    assert report.page("model, pruned").html() == html


def test_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.txt"
    many.write_text("a cat\n" * 51)
    arguments = ("prune", model, tmp_path / "out", "--sparsity", "0.5")
    page = ("--report", tmp_path / "report.html")
    assert "name a .html file" in refused(2, *arguments, "--report", tmp_path / "report.pdf")
    assert "is not a folder" in refused(2, *arguments, "--report", tmp_path / "none" / "a.html")
    (tmp_path / "folder.html").mkdir()
    assert "it is a folder" in refused(2, *arguments, "--report", tmp_path / "folder.html")
    (tmp_path / "folder.html").rmdir()
    assert "cannot be written" in refused(2, *arguments, "--report", f"/proc/{page[1].name}")
    assert "--report page.html too" in refused(2, *arguments, "--examples", many)
    assert "at most 50" in refused(2, *arguments, *page, "--examples", many)
    assert "examples file" in refused(2, *arguments, *page, "--examples", tmp_path / "none.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.txt"]
