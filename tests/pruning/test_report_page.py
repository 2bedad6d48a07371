"""The page of a pruning report: its numbers are the report's, and it can be made from JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_models import bert
from driver_models import bert_batches
from html_page import outside_references, parsed
from torch import nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning import PruneReport, prune
from sparse_engine.pruning.density_section import MOST, density_section
from sparse_engine.pruning.layer_report import HeadsReport, LayerReport, Left
from sparse_engine.pruning.recovery.base import BlockReport
from sparse_engine.pruning.target.report import TargetLayer, TargetReport
from sparse_engine.reporting.density_map import DensityMap
from sparse_engine.reporting.example import Example

pytest.importorskip("matplotlib")
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return bert()


@pytest.fixture(scope="module")
def report(model: nn.Module) -> PruneReport:
    made = prune(model, 0.6, "4x1", "magnitude", "least_squares", bert_batches(), allocator="lamp")
    made.examples = [Example("a text", "before", "after", 0.75)]
    return made


def test_statistics_are_those_of_the_weights(model: nn.Module, report: PruneReport) -> None:
    for row in report.layers:
        weight: Any = model.get_submodule(row.name).weight
        kept = (weight != 0).numpy()
        assert row.sparsity == pytest.approx(1 - kept.mean())
        assert row.rows_kept == kept.any(1).sum()
        assert row.columns_kept == kept.any(0).sum()
        assert row.density is not None
        np.testing.assert_allclose(row.density.values, kept, atol=1e-9)  # as small as the map


def test_numbers_of_the_page(report: PruneReport) -> None:
    html = report.page("A model").html()
    assert outside_references(html) == []
    page = parsed(html)
    tables = {tuple(table[0]): table[1:] for table in page.tables}
    rows = next(rows for head, rows in tables.items() if head[:2] == ("layer", "shape"))
    assert [row[0] for row in rows] == [layer.name for layer in report.layers]
    for row, layer in zip(rows, report.layers, strict=True):
        assert row[1:4] == [
            f"{layer.shape[0]} x {layer.shape[1]}", "4x1", f"{100 * layer.sparsity:.1f} %",
        ]  # fmt: skip
        assert row[4:6] == [str(layer.rows_kept), str(layer.columns_kept)]
        assert row[6:8] == [f"{layer.error_before:.3f}", f"{layer.error_after:.3f}"]
    heads = next(rows for head, rows in tables.items() if head == ("", "0", "1"))
    assert heads == [
        [f"encoder.layer.{i}", *(f"{100 * share:.0f}%" for share in row.kept)]
        for i, row in enumerate(report.heads)
    ]
    errors = next(rows for head, rows in tables.items() if "query, mask alone" in head)
    queries = [layer for layer in report.layers if layer.name.endswith("query")]
    assert [row[1] for row in errors] == [f"{layer.error_after:.3f}" for layer in queries]
    left = next(rows for head, rows in tables.items() if head[0] == "module")
    assert [row[0] for row in left] == [item.name for item in report.left]
    assert ["a text", "before", "after", "0.750"] in [row for t in tables.values() for row in t]
    assert len(page.all("img")) == len(report.layers)
    assert f"{100 * report.zeros_of_multiply_adds:.1f} %" in page.text
    assert "A model" in page.text
    assert report.method in page.text


def test_a_page_can_be_made_from_json(report: PruneReport, tmp_path: Path) -> None:
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    again = PruneReport.from_dict(values)
    assert again == report
    assert again.page().html() == report.page().html()
    for change in ({"layers": 3}, {"layers": [{"name": "a"}]}, {"seconds": "soon"}):
        with pytest.raises(InvalidFileError, match=r"^this is no report of prune: [^\n]*$"):
            PruneReport.from_dict({**values, **change})
    with pytest.raises(InvalidFileError, match="granularity"):
        PruneReport.from_dict({})
    old = [{k: v for k, v in row.items() if k != "density"} for row in values["layers"]]
    values.pop("heads")
    thin = PruneReport.from_dict({**values, "layers": old})
    assert parsed(thin.page().html()).all("img") == []


def test_files(report: PruneReport, tmp_path: Path) -> None:
    path = report.to_html(tmp_path / "report.html", "A model")
    assert path.read_text() == report.page("A model").html()
    pictures = report.to_png(tmp_path / "charts")
    names = {picture.name for picture in pictures}
    assert {"sparsity.png", "error.png", "density.png", "heads.png"} <= names
    assert all(picture.stat().st_size > 5000 for picture in pictures)


def test_blocks_recipe_and_metrics(report: PruneReport) -> None:
    blocks = [BlockReport(f"encoder.layer.{i}", 0.5 + i, 0.25 + i, 1.0) for i in range(2)]
    made = replace(report, blocks=blocks, metrics={"accuracy": 0.875})
    page = parsed(made.page().html())
    assert ["0", "0.250", "0.500"] in [row for table in page.tables for row in table]
    recipe = next(table for table in page.tables if table[0] == ["what", "value"])
    values = dict(row for row in recipe[1:])
    assert values["granularity"] == "4x1"
    assert values["sparsity"] == "0.6"
    assert {*report.recipe, *report.calibration, *report.versions} <= values.keys()
    assert "0.875" in page.text


def test_target(report: PruneReport) -> None:
    layers = tuple(
        TargetLayer(layer.name, "4x1", 0.75, "bsr:4x1", 0.25 * i, 0.5)
        for i, layer in enumerate(report.layers)
    )
    target = TargetReport("speedup=2", "ms", 5.0, 4.9, 5.1, 10.2, 1.0, 128, 10, layers)
    made = replace(report, target=target)
    page = parsed(made.page().html())
    assert target.summary in page.text
    assert "a call of 128 tokens" in page.text
    rows = [row for table in page.tables for row in table]
    assert [layers[1].name, "bsr:4x1", "4x1", "75.0 %", "0.25", "0.500"] in rows
    assert PruneReport.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_hostile_names() -> None:
    density = DensityMap.of(torch.rand(8, 8).numpy() < 0.5)
    layer = LayerReport(EVIL, (8, 8), EVIL, 0.5, 0.2, 0.1, 1.0, EVIL, 8, 2, density)
    report = PruneReport(
        EVIL, EVIL, EVIL, EVIL, [layer, replace(layer, name=f"{EVIL}.0.{EVIL}")],
        left=[Left(EVIL, 1, 0.5, EVIL)], unseen=[EVIL], heads=[HeadsReport(EVIL, (0.5,))],
        recipe={EVIL: [EVIL]},
        versions={EVIL: EVIL}, metrics={EVIL: 1.0}, blocks=[BlockReport(EVIL, 1.0, 0.5, 1.0)],
        examples=[Example(EVIL, EVIL, EVIL)],
    )  # fmt: skip
    html = report.page(EVIL).html()
    assert outside_references(html) == []
    assert parsed(html).text.count(EVIL) > 15


def test_recurrent_models_and_empty_reports(tmp_path: Path) -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(8, 16, bidirectional=True), "fc": nn.Linear(32, 4)})
    report = prune(model, 0.5)
    page = parsed(report.page().html())
    assert len(page.all("img")) == len(report.layers) >= 4
    assert "Every layer has 50.0 % zeros." in page.text
    assert "are not measured" in page.text
    empty = PruneReport("element", "magnitude", None, "uniform")
    assert parsed(empty.page().html()).all("img") == []
    assert empty.to_png(tmp_path) == []


def test_large_models_stay_small() -> None:
    generator = np.random.default_rng(0)
    layers = [
        LayerReport(
            f"model.layers.{block}.mlp.{role}_proj", (4096, 4096), "element", 0.5, 0.4, 0.3, 1.0,
            "", 4096, 4096, DensityMap.of(generator.random((64, 64)) < 0.5),
        )
        for block in range(80)
        for role in ("q", "k", "v", "o", "gate", "up", "down")
    ]  # fmt: skip
    report = PruneReport("element", "magnitude", None, "uniform", layers)
    html = report.page().html()
    assert len(html) < 3_000_000
    page = parsed(html)
    assert len(page.all("img")) == MOST
    assert f"{MOST} of 560 layers are shown" in page.text
    assert len([d for d in page.all("details") if d.get("class") == "tiles"]) == 80
    first = density_section(layers[:3]).tiles[0].tiles
    assert len(first) == 3
