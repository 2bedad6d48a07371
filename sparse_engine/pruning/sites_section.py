"""The section of the page of a pruning report on structures: what is left of each site."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_engine.pruning.site_report import SiteReport, counts_of, plural
from sparse_engine.reporting.bar_chart import BarChart
from sparse_engine.reporting.chart import Table
from sparse_engine.reporting.names import short_names, split_name
from sparse_engine.reporting.page import Section


def sites_section(sites: Sequence[SiteReport], sizes: str) -> Section:
    """Bars and a table of what is left.

    Args:
        sites: those from which groups were removed.
        sizes: a sentence on the size of the model before and after.
    """
    if not sites:
        return Section("")
    kinds = dict.fromkeys(site.kind for site in sites)
    charts = tuple(_chart([site for site in sites if site.kind == kind], kind) for kind in kinds)
    text = [f"What is left: {counts_of(sites)}.", sizes]
    if any(site.error_after is not None for site in sites):
        text.append(
            "The error is |V X - Y| / |Y|: of the outputs of the layers that read what was "
            "removed, on the calibration inputs, relative to their target; before and after "
            "recovery."
        )
    return Section(
        "Structures", tuple(text), charts, table=site_table(sites), table_title="All sites"
    )


def site_table(sites: Sequence[SiteReport]) -> Table:
    """A row for each site; empty columns are left out."""
    head = ("site", "structure", "kept", "of", "removed", "error before", "error after", "note")
    rows = tuple(
        (
            site.name,
            site.kind,
            str(len(site.kept)),
            str(site.groups),
            _removed(site),
            "" if site.error_before is None else f"{site.error_before:.3f}",
            "" if site.error_after is None else f"{site.error_after:.3f}",
            "; ".join(filter(None, ("at its floor" if site.at_floor else "", site.warning))),
        )
        for site in sites
    )
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return Table(
        tuple(head[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows), left=2
    )


FEW = 16
"""The numbers of the groups that are gone are listed up to so many."""


def _removed(site: SiteReport) -> str:
    """The numbers of the groups that are gone, where they are few."""
    removed = sorted(set(range(site.groups)) - set(site.kept))
    return " ".join(map(str, removed)) if len(removed) <= FEW else ""


def _chart(sites: Sequence[SiteReport], kind: str) -> BarChart:
    kept, groups = [len(site.kept) for site in sites], [site.groups for site in sites]
    shares = [k / max(g, 1) for k, g in zip(kept, groups, strict=True)]
    blocks = [split_name(site.name)[0].rpartition(".")[2] for site in sites]
    are_blocks = all(blocks) and len(set(blocks)) == len(blocks)
    short = short_names(site.name for site in sites)
    return BarChart(
        f"{plural(kind)}-left",
        f"{plural(kind).capitalize()} that are left",
        f"A bar for each site: from {100 * min(shares):.1f} % to {100 * max(shares):.1f} % of the "
        f"{plural(kind)} are left. The table has the numbers.",
        "block" if are_blocks else "site",
        f"{plural(kind)} kept",
        tuple(blocks if are_blocks else (short[site.name] for site in sites)),
        tuple(groups),
        tuple(kept),
    )
