"""Pages: their structure, that hostile text stays text, and that nothing comes from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from html_page import outside_references, parsed

from sparse_engine.reporting.chart import Table
from sparse_engine.reporting.example import Example, example_table
from sparse_engine.reporting.heat_map import HeatMap
from sparse_engine.reporting.line_chart import Line, LineChart
from sparse_engine.reporting.page import OPEN_ROWS, Page, Section, Tile, TileRow, footer

pytest.importorskip("matplotlib")
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp; $\\frac$ \udcff"
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def hostile_page() -> Page:
    chart = LineChart(
        "c", EVIL, EVIL, EVIL, EVIL, (Line(EVIL, ((0, 1), (1, 2))),), x_names=(EVIL, EVIL)
    )
    heat = HeatMap("h", EVIL, EVIL, EVIL, EVIL, (EVIL,), (EVIL,), ((0.5,),), 0, 1)
    table = Table((EVIL, EVIL), ((EVIL, EVIL),))
    tiles = TileRow(EVIL, (Tile(PIXEL, 10, EVIL, EVIL, EVIL),))
    section = Section(EVIL, (EVIL,), (chart, heat), (tiles,), table, EVIL)
    return Page(EVIL, EVIL, ((EVIL, EVIL),), (EVIL,), (section, Section("")), EVIL)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    html = hostile_page().html()
    assert outside_references(html) == []
    page = parsed(html)
    assert [image["src"] for image in page.all("img")] == [PIXEL]
    assert "49" not in page.text
    assert page.text.count("<script>alert(1)</script>") > 15
    assert "{{ 7 * 7 }}&amp;" in page.text
    path = hostile_page().write(tmp_path / "page.html")
    assert path.read_bytes().startswith(b"<!doctype html>")


def test_references_are_found() -> None:
    for html in (
        "<script></script>",
        "<img src='https://a.b/c.png'>",
        "<p onclick='x'></p>",
        "<style>p{background:url(x.png)}</style>",
        "<a href='javascript:x'></a>",
        '<link rel="stylesheet">',
    ):
        assert outside_references(html), html


def test_structure(tmp_path: Path) -> None:
    chart = LineChart("c", "A chart", "It rises.", "x", "y", (Line("a", ((0, 1), (1, 2))),))
    long = Table(("n",), tuple((str(i),) for i in range(OPEN_ROWS + 1)))
    page = Page(
        "A title",
        "how",
        (("80 %", "zeros"),),
        ("look out",),
        (Section("First", ("A sentence.",), (chart,)), Section("Second", table=long)),
        footer(),
    )
    found = parsed(page.html())
    assert found.all("html")[0]["lang"] == "en"
    names = {meta.get("name") for meta in found.all("meta")}
    assert {"viewport", "color-scheme"} <= names
    assert len(found.all("h1")) == 1
    assert len(found.all("h2")) == 2
    (picture,) = [div for div in found.all("div") if div.get("role") == "img"]
    assert picture["aria-label"] == "It rises."
    assert found.tables[0] == [["x", "a"], ["0", "1.000"], ["1", "2.000"]]
    assert len(found.tables[1]) == OPEN_ROWS + 2
    assert "open" not in found.all("details")[-1]  # a long table is closed at first
    assert all("alt" in image for image in found.all("img"))
    assert "prefers-color-scheme:dark" in page.html()
    assert "@media print" in page.html()
    assert found.text.rstrip().endswith(footer())
    path = page.write(tmp_path / "page.html")
    page.write(path)  # a file is replaced
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_examples() -> None:
    table = example_table([Example("a", "b", "c"), Example("d", "e", "f", 0.51234)])
    assert table.head[-1] == "cosine of the embeddings"
    assert table.rows == (("a", "b", "c", ""), ("d", "e", "f", "0.512"))
    assert len(example_table([Example("a", "b", "c")]).head) == 3
