"""What is left of a site, in pruning.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning import PruneReport
from sparse_engine.pruning.site_report import SiteReport


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ((), ""),
        ((3,), "3"),
        ((0, 1), "0-1"),
        ((0, 1, 2, 3, 5, 7, 8), "0-3,5,7-8"),
        ((1, 3, 9), "1,3,9"),
        (tuple(range(10)), "0-9"),
    ],
)
def test_numbers_are_written_as_ranges_and_read_again(kept: tuple[int, ...], text: str) -> None:
    report = PruneReport("head", "obs", None, "uniform")
    report.sites = [SiteReport("layer.0", "head", 10, kept)]
    values = json.loads(json.dumps(report.to_dict()))
    (site,) = values["sites"]
    assert (site["name"], site["kind"], site["groups"]) == ("layer.0", "head", 10)
    assert site["kept"] == text
    assert PruneReport.from_dict(values).sites == report.sites


@pytest.mark.parametrize(
    "change",
    [
        {"kept": "0-10"},
        {"kept": "3-1"},
        {"kept": "3,2"},
        {"kept": "0-3,3"},
        {"kept": "x"},
        {"kept": "-1"},
        {"kept": "0-99999999999999", "groups": 10**14},
        {"kept": "1", "groups": "2"},
        {"kept": 5},
    ],
)
def test_wrong_numbers_are_refused(change: dict[str, Any]) -> None:
    report = PruneReport("head", "obs", None, "uniform", sites=[SiteReport("a", "head", 10, (1,))])
    values = report.to_dict()
    values["sites"][0] |= change
    with pytest.raises(InvalidFileError) as caught:
        PruneReport.from_dict(values)
    assert "\n" not in str(caught.value)
