"""The page of a sensitivity report: its numbers are those of the trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from html_page import outside_references, parsed

from sparse_engine.analysis.report import SensitivityReport
from sparse_engine.analysis.trial import Trial

pytest.importorskip("matplotlib")
EVIL = "<script>alert('x')</script>"


def made(layers: list[str], metric: str = "accuracy") -> SensitivityReport:
    trials = [
        Trial(layer, granularity, sparsity, sparsity, 0.9 - 0.01 * i * sparsity)
        for i, layer in enumerate(layers)
        for granularity in ("element", "4x1")
        for sparsity in (0.5, 0.9)
    ]
    trials += [
        Trial("", "element", 0.5, 0.5, 0.88, 4.0, 8.0),
        Trial("", "element", 0.9, 0.9, 0.70, 2.0, 8.1),
        Trial("", "4x1", 0.5, 0.5, 0.87, 5.0, 7.9),
        Trial("", "4x1", 0.9, 0.9, None, 1.0, 8.0),
    ]
    return SensitivityReport(metric, True, 0.9, "magnitude", None, trials, "a call", 1.0)


def test_numbers_of_the_page(tmp_path: Path) -> None:
    names = [f"encoder.layer.{i}.{role}" for i in range(2) for role in ("attn.q", "mlp.up")]
    report = made(names)
    html = report.page("A model").html()
    assert outside_references(html) == []
    page = parsed(html)
    tables = {tuple(table[0]): table[1:] for table in page.tables}
    settings = next(rows for head, rows in tables.items() if head[0] == "pattern")
    assert settings == [
        ["element", "50.0 %", "0.88", "4.000", "8.000", "2.00x", "yes"],
        ["element", "90.0 %", "0.7", "2.000", "8.100", "4.05x", "yes"],
        ["4x1", "50.0 %", "0.87", "5.000", "7.900", "1.58x", ""],
        ["4x1", "90.0 %", "-", "1.000", "8.000", "8.00x", ""],
    ]
    layers = next(rows for head, rows in tables.items() if head[:2] == ("layer", "rank"))
    assert layers[1] == ["encoder.layer.0.mlp.up", "3", "0.895", "0.891", "0.895", "0.891"]
    assert [row[1] for row in layers] == ["4", "3", "2", "1"]
    front = next(rows for head, rows in tables.items() if head[0] == "setting")
    assert [row[2] for row in front if row[-1] == "yes"] == ["2.000", "4.000", "8.000"]
    heat = next(rows for head, rows in tables.items() if head == ("", "q", "up"))
    assert heat[1] == ["encoder.layer.1", "0.018", "0.027"]
    assert [trial.ms for trial in report.front] == [2.0, 4.0]
    pictures = report.to_png(tmp_path)
    assert {p.name for p in pictures} == {
        "sparsity.png", "front.png", "curves.png", "layers.png", "curves-1.png", "layers-1.png",
    }  # fmt: skip
    assert report.to_html(tmp_path / "a.html", "A model").read_text() == html


def test_hostile_names() -> None:
    html = made([EVIL, f"{EVIL}.0.{EVIL}"], EVIL).page(EVIL).html()
    assert outside_references(html) == []
    assert parsed(html).text.count(EVIL) > 10


def test_large_models_and_parts() -> None:
    names = [f"model.layers.{i}.mlp.{role}" for i in range(100) for role in "abcdefg"]
    html = made(names).page().html()
    assert len(html) < 1_000_000
    assert len([rows for rows in parsed(html).tables if len(rows) == 701]) == 1
    report = made(["fc"])
    for trials in (report.by_layer, report.by_model, []):
        report.trials = trials
        assert parsed(report.page().html()).elements
