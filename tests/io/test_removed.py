"""What was removed from stored models: shapes and reports, and reports that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from whole_models import TextCnn

import sparse_engine as se
from sparse_engine.errors import InvalidFileError
from sparse_engine.io.removed import MOST, describe, recorded
from sparse_engine.structures import Remaining


def site(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "kind": "unit", "groups": 10, "kept": "0-3,5", **changes}


def test_sites_of_all_steps() -> None:
    report = {"steps": [{"sites": [site()]}], "sites": [site(name="b", kind="head", kept="0-9")]}
    assert recorded(report) == (Remaining("a", "unit", 5, 10),)  # of b nothing is gone
    assert recorded({"sites": [site(kept="")]}) == (Remaining("a", "unit", 0, 10),)


@pytest.mark.parametrize("report", [None, {}, {"sites": 3}, {"steps": "x"}, {"steps": [None, []]}])
def test_what_is_no_report_lists_nothing(report: Any) -> None:
    assert recorded(report) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kept": "0-10"},
        {"kept": "3-1"},
        {"kept": "1,1"},
        {"kept": "0-3,2"},
        {"kept": "-1"},
        {"kept": "x"},
        {"kept": "\u00b2"},
        {"kept": "1-\u00b2"},
        {"kept": "9" * 5000},
        {"kept": 3},
        {"groups": "10"},
        {"groups": True},
        {"kind": "vocabularies"},
        {"kind": ["unit"]},
        {"name": None},
    ],
)
def test_sites_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidFileError) as error:
        recorded({"sites": [site(**wrong)]})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_far_too_many_sites() -> None:
    with pytest.raises(InvalidFileError, match=f"at most {MOST}"):
        recorded({"sites": [site()] * (MOST + 1)})


def test_text() -> None:
    removed = (
        Remaining("a", "head", 1, 4),
        Remaining("b", "head", 3, 4),
        Remaining("words", "vocabulary", 4383, 30522),
    )
    assert describe(removed) == (
        "; heads: 4 of 8 remain where some were removed, 1 to 3 in each of 2 places"
        "; vocabulary: 4,383 of 30,522 rows remain"
    )
    assert describe(()) == ""


def test_packages_of_plain_modules_list_their_report(tmp_path: Path) -> None:
    model = TextCnn().eval()
    report = se.prune(model, 0.5, "filter(readers='convs.*: mix')")
    se.save(model, tmp_path / "package", recipe=report.to_dict())
    found = se.io.inspect(tmp_path / "package")
    assert found.removed == tuple(Remaining(f"convs.{i}", "filter", 12, 24) for i in range(3))
    assert "36 of 72 remain where some were removed, 12 in each of 3 places" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["removed"][0]["kept"] == 12
