"""sparse-engine sensitivity: its tables, its page, and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from command_line import ok, refused
from html_page import outside_references, parsed

from sparse_engine.analysis.report import SensitivityReport

pytest.importorskip("matplotlib")


def test_table_and_page(model: Path, texts: Path, tmp_path: Path) -> None:
    page = tmp_path / "sensitivity.html"
    told = ok("sensitivity", model, "--calibration", texts, "--samples", "8", "--sparsity",
              "0.9", "--tokens", "8", "--report", page,
              COLUMNS="80")  # fmt: skip
    assert max(map(len, told.splitlines()[:-4])) <= 80
    assert "most sensitive: encoder.layer." in told
    assert "query" in told
    assert "a call of 8 tokens" in told
    html = page.read_text()
    assert outside_references(html) == []
    assert "model: sensitivity to pruning" in parsed(html).text


def test_json(model: Path, texts: Path) -> None:
    told = ok("sensitivity", model, "--calibration", texts, "--samples", "4", "--sparsity", "0.5",
              "--by", "model", "-o", "json")  # fmt: skip
    report = SensitivityReport.from_dict(json.loads(told))
    assert [trial.layer for trial in report.trials] == [""]
    assert report.metric == "cosine to dense"


def test_refused_before_the_model_is_loaded(model: Path, texts: Path, tmp_path: Path) -> None:
    start = ("sensitivity", model, "--calibration", texts)
    with mock.patch("sparse_engine.io.load_pretrained", side_effect=AssertionError):
        assert "--sparsity" in refused(2, *start, "--sparsity", "0.5,many")
        assert "not a fraction" in refused(2, *start, "--sparsity", "2")
        assert "by is" in refused(2, *start, "--by", "head")
        assert "use table or json" in refused(2, *start, "-o", "yaml")
        assert "name a .html file" in refused(2, *start, "--report", tmp_path / "a.png")
        assert "none.txt" in refused(2, "sensitivity", model, "--calibration", "none.txt")
        assert "give some" in refused(2, "sensitivity", model, "--calibration", "none")


def test_built_in_texts(model: Path) -> None:
    told = ok("sensitivity", model, "--samples", "4", "--sparsity", "0.5", "--by", "model")
    assert "cosine to dense" in told
