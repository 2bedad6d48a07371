"""Charts: what is drawn, as SVG and PNG, and the same numbers as tables."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from html_page import parsed

from sparse_engine.errors import UsageError
from sparse_engine.reporting.by_block import Values, charts_by_block
from sparse_engine.reporting.chart import COLOURS, INK
from sparse_engine.reporting.front_chart import FrontChart, Point, pareto_front
from sparse_engine.reporting.heat_map import HeatMap
from sparse_engine.reporting.line_chart import Line, LineChart
from sparse_engine.reporting.names import short_names, split_name
from sparse_engine.reporting.page import write_charts
from sparse_engine.reporting.pyplot import check_output

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"

LINES = LineChart(
    "lines",
    "Some lines",
    "Two lines that rise.",
    "zeros",
    "metric $x$ <b>",
    (
        Line("a<script>", ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0))),
        Line("a, before", ((0.0, 2.0),), faint=True),
        Line("b_$", ((1.0, 3.0),)),
    ),
    level=("dense", 0.5),
)
MAP = HeatMap(
    "map", "A map", "Two rows.", "x", "block", ("h0", "h1"), ("r<i>0", "r1"),
    ((0.25, None), (0.5, 1.0)), 0.0, 1.0,
)  # fmt: skip
POINTS = (Point(3, 0.9, "a", "50"), Point(2, 0.8, "a", "80"), Point(2.5, 0.7, "b", "80"))
FRONT = FrontChart(
    "front", "A front", "Three settings.", "ms", "cosine", POINTS, Point(6, 1, "dense", "dense"),
    True,
)  # fmt: skip


@pytest.mark.parametrize("chart", [LINES, MAP, FRONT], ids=lambda chart: chart.name)
def test_svg_has_the_colours_of_the_page(chart: Any) -> None:
    svg = chart.svg()
    page = parsed(svg)
    assert page.elements[0][0] == "svg"
    assert float(page.all("svg")[0]["width"]) < 420
    assert "var(--ink)" in svg
    assert all(colour not in svg for colour in (INK, *COLOURS))
    assert "<metadata" not in svg
    assert "<!doctype" not in svg.lower()
    assert not any(page.all(tag) for tag in ("script", "b", "i"))
    assert "DejaVu" not in svg


def test_labels_are_text() -> None:
    text = parsed(LINES.svg()).text
    for label in ("a<script>", "b_$", "metric $x$ <b>", "zeros", "dense"):
        assert label in text
    assert "a, before" not in text


def test_tables_have_the_numbers() -> None:
    table = LINES.table()
    assert table.head == ("zeros", "a<script>", "a, before", "b_$")
    assert table.rows == (
        ("0", "1.000", "2.000", ""),
        ("1", "2.000", "", "3.000"),
        ("2", "4.000", "", ""),
    )
    assert MAP.table().rows == (("r<i>0", "0.250", ""), ("r1", "0.500", "1.000"))
    front = [row for row in FRONT.table().rows if row[-1] == "yes"]
    assert [row[2] for row in front] == ["2.000", "3.000", "6.000"]


def test_front() -> None:
    def point(x: float, y: float) -> Point:
        return Point(x, y, "", "")

    points = [point(1, 1), point(1, 2), point(2, 2), point(3, 5), point(4, 4), point(5, 5)]
    assert pareto_front(points, True) == [point(1, 2), point(3, 5)]
    assert pareto_front(points, False) == [point(1, 1)]
    assert pareto_front([], True) == []


def test_pictures_are_written(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    paths = write_charts([LINES, MAP, FRONT], tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["lines.png", "map.png", "front.png"]
    for path in paths:
        assert path.read_bytes().startswith(PNG)
        opened = image.open(path).convert("RGB")
        assert min(opened.size) > 200
        assert len(opened.getcolors(1 << 24)) > 20
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [
        "front.png", "lines.png", "map.png",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="is a file"):
        write_charts([LINES], paths[0])


def test_blocks_become_lines() -> None:
    names = [f"enc.layer.{i}.{role}" for i in (0, 1, 10) for role in ("attn.q", "mlp.up")]
    values = {name: float(i) for i, name in enumerate(names)}
    (chart,) = charts_by_block(Values("e", "Error", "error", values, {names[0]: 9.0}))
    assert [line.label for line in chart.lines] == ["q", "q, mask alone", "up"]
    assert chart.lines[0].points == ((0, 0.0), (1, 2.0), (10, 4.0))
    assert chart.lines[1].points == ((0, 9.0),)
    assert "enc.layer" in chart.title


def test_layers_outside_of_blocks_and_experts() -> None:
    values = {"lstm.ih_l0": 1.0, "lstm.hh_l0": 2.0, "fc": 3.0}
    (chart,) = charts_by_block(Values("e", "Error", "error", values, {}))
    assert chart.x_names == ("ih_l0", "hh_l0", "fc")
    assert chart.lines[0].points == ((0, 1.0), (1, 2.0), (2, 3.0))
    experts = {f"layers.{i}.experts.up.{e}": float(e) for i in (0, 1) for e in range(4)}
    (chart,) = charts_by_block(Values("e", "Error", "error", experts, {}))
    assert chart.lines[0].points == ((0, 1.5), (1, 1.5))
    assert charts_by_block(Values("e", "Error", "error", {}, {})) == []


def test_names() -> None:
    assert split_name("encoder.layer.3.attention.self.query") == (
        "encoder.layer.3", "attention.self.query",
    )  # fmt: skip
    assert split_name("fc") == ("", "fc")
    assert split_name("0") == ("0", "")
    assert split_name("h.2.experts.up.17") == ("h.2", "experts.up")
    assert split_name("") == ("", "")
    assert short_names(["a.b", "c.b", "d"]) == {"a.b": "a.b", "c.b": "c.b", "d": "d"}
    assert short_names(["x.dense", "dense"]) == {"x.dense": "x.dense", "dense": "dense"}


def test_without_matplotlib_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    page = tmp_path / "page.html"
    for call in (LINES.svg, LINES.png, lambda: check_output(page, "--report", (".html",))):
        with pytest.raises(UsageError, match=r"^plots need matplotlib: pip install \S+\[plot\]$"):
            call()


def test_outputs_are_checked_first(tmp_path: Path) -> None:
    check_output(tmp_path / "a.html", "--report", (".html",))
    with pytest.raises(UsageError, match=r"--report .*: name a \.html file"):
        check_output(tmp_path / "a.txt", "--report", (".html",))
    with pytest.raises(UsageError, match=r"name a \.png or \.svg file"):
        check_output(tmp_path / "a", "--plot", (".png", ".svg"))
    with pytest.raises(UsageError, match="is not a folder"):
        check_output(tmp_path / "none" / "a.html", "--report", (".html",))
