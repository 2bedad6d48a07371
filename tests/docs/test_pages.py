"""Pages of the documentation: links lead somewhere, lines are short, figures are the
measured ones.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(ROOT / room / "README.md" for room in ("bench", "csrc", "examples")),
    *DOCS,
]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in (a or b for a, b in links):
        if link.startswith("http"):
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if fragment:
            assert fragment in anchors(target), link


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name != "csrc"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_lines_are_short(page: Path) -> None:
    """100 columns, but for rows of tables and single words."""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("|") and len(line.split()) > 1:
            assert len(line) <= 100, f"{page.name}:{number}"


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in DOCS:
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


FORMATS = {"unstructured": ("csr",), "4x4 blocks": ("bsr:4x4",), "1 token": ("sellp", "bitmask")}


def rows_of(section: str, label: str) -> dict[float, str]:
    """Sparsity -> figure of one row of docs/benchmarks.md."""
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    part = text.split(f"### {section}\n")[1].split("\n### ")[0]
    cells = {row[0]: row[1:] for row in (_cells(line) for line in part.splitlines()) if row}
    heads = [float(cell.rstrip(" %")) / 100 for cell in cells["zeros"]]
    return {zeros: cell for zeros, cell in zip(heads, cells[label], strict=True) if cell}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


EMERALD, GRANITE = "Emerald Rapids, without AMX", "Granite Rapids, with AMX"
LARGE = {(11008, 4096)}


@pytest.mark.parametrize(
    ("section", "label", "dtype", "kind", "tokens"),
    [
        (EMERALD, "float32 unstructured, 128 tokens", "float32", "unstructured", 128),
        (EMERALD, "float32 unstructured, 16 tokens", "float32", "unstructured", 16),
        (EMERALD, "bfloat16 unstructured, 128 tokens", "bfloat16", "unstructured", 128),
        (EMERALD, "float32 4x4 blocks, 128 tokens", "float32", "4x4 blocks", 128),
        (EMERALD, "int8 4x4 blocks, 128 tokens", "int8", "4x4 blocks", 128),
        (EMERALD, "bfloat16, 1 token, 11008 x 4096", "bfloat16", "1 token", 1),
        (GRANITE, "float32 unstructured", "float32", "unstructured", 128),
        (GRANITE, "bfloat16 unstructured", "bfloat16", "unstructured", 128),
        (GRANITE, "int8 4x4 blocks", "int8", "4x4 blocks", 128),
        (GRANITE, "int8 `bitmask` or `sellp`, 1 token", "int8", "1 token", 1),
    ],
)
def test_figures_are_the_measured_ones(
    section: str, label: str, dtype: str, kind: str, tokens: int
) -> None:
    chart = load_script("chart")
    points = chart.read_points(chart.EMERALD if section == EMERALD else chart.GRANITE)
    shapes = None
    if section == EMERALD:
        shapes = LARGE if kind == "1 token" else chart.BERT_FEED_FORWARD
    measured = chart.speedups(points, chart.Line(label, dtype, FORMATS[kind]), tokens, shapes)
    for zeros, figure in rows_of(section, label).items():
        # The tables have one decimal, some of them rounded to two decimals before.
        assert abs(float(figure.rstrip("x")) - measured[zeros]) <= 0.055, (zeros, figure)


def test_pictures_of_the_readme_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart = load_script("chart")
    chart.draw(tmp_path / "chart.svg", dark=False)
    assert (tmp_path / "chart.svg").read_text().count("<path") > 20
