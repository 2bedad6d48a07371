"""What was removed from a stored model: told by the shapes of its weights, and by its report.

Shapes tell how many heads, units, filters and experts remain. That whole layers or words are gone
only the report says, which `prune` writes to pruning.json: the config is that of a smaller model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparse_engine.errors import InvalidFileError
from sparse_engine.structures import STRUCTURES, Layer, Remaining, Vocabulary, read_ranges

KINDS = {*(cls.name for cls in STRUCTURES), Vocabulary.name}
UNSEEN = (Layer.name, Vocabulary.name)
"""Structures that leave no mark on the shapes of a model."""

MOST = 1 << 16
"""Reports and sites of a file, at most."""


def recorded(report: Any) -> tuple[Remaining, ...]:
    """The places that lost groups, as a report of `prune` lists them.

    Args:
        report: plain values from a file; what is no report lists nothing.

    Raises:
        InvalidFileError: for a site with numbers that cannot be.
    """
    steps = report.get("steps") if isinstance(report, dict) else None
    reports = [*(steps if isinstance(steps, list) else []), report]
    sites = [site for one in reports[-MOST:] for site in _sites(one)]
    if len(sites) > MOST:
        raise InvalidFileError(f"its report has {len(sites)} sites, at most {MOST}")
    return tuple(filter(None, map(_remaining, sites)))


def describe(removed: Sequence[Remaining]) -> str:
    """What is left of each kind of structure, after a semicolon; "" where nothing was removed."""
    text = ""
    for kind in dict.fromkeys(site.kind for site in removed):
        sites = [site for site in removed if site.kind == kind]
        kept = [site.kept for site in sites]
        groups = sum(site.groups for site in sites)
        if kind == Vocabulary.name:
            text += f"; vocabulary: {sum(kept):,} of {groups:,} rows remain"
            continue
        text += f"; {kind}s: {sum(kept)} of {groups} remain where some were removed"
        if len(sites) > 1:
            least, most = min(kept), max(kept)
            each = str(most) if least == most else f"{least} to {most}"
            text += f", {each} in each of {len(sites)} places"
    return text


def _sites(report: Any) -> Iterator[Any]:
    sites = report.get("sites") if isinstance(report, dict) else None
    yield from sites if isinstance(sites, list) else ()


def _remaining(site: Any) -> Remaining | None:
    """A site of a report; None if nothing of it is gone."""
    values = site if isinstance(site, dict) else {}
    name, kind, groups, kept = (values.get(key) for key in ("name", "kind", "groups", "kept"))
    if not isinstance(name, str) or not isinstance(kind, str) or kind not in KINDS:
        raise InvalidFileError(f"its report has the site {site!r:.60}: no name and structure")
    if type(groups) is not int or not isinstance(kept, str):
        raise InvalidFileError(f"its report: groups and kept of {name!r:.60} are no numbers")
    count = sum(map(len, read_ranges(kept, groups)))
    return Remaining(name, kind, count, groups) if count < groups else None
