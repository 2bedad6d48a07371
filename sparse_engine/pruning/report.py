"""What pruning did, layer by layer, and what that is of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from sparse_engine.pruning.density_section import DensityChart, density_section
from sparse_engine.pruning.layer_report import HeadsReport, LayerReport, Left
from sparse_engine.pruning.plan import DID_NOT_RUN
from sparse_engine.pruning.recovery.base import BlockReport
from sparse_engine.pruning.sections import (
    blocks_section,
    examples_section,
    layers_section,
    left_section,
    percent,
    recipe_section,
    shares_section,
    target_section,
    units_section,
)
from sparse_engine.pruning.site_report import LOST, SiteReport, counts_of, with_numbers
from sparse_engine.pruning.sites_section import sites_section
from sparse_engine.pruning.target.report import TargetReport
from sparse_engine.reporting.chart import Chart
from sparse_engine.reporting.example import Example
from sparse_engine.reporting.page import Page, footer
from sparse_engine.reporting.report import Report

COLLAPSED = 0.98
"""Share of zeros in a layer above which the report warns, unless the whole model has as many."""

EMPTY_ROWS = 0.25
"""Share of the rows of a layer that are zero above which the report warns."""

FEW = 0.5
"""Share of the multiply-adds below which the report warns that pruning saves little."""


@dataclass
class PruneReport(Report):
    """Result of `prune`.

    Attributes:
        granularity: its text form.
        criterion: its text form.
        recovery: its text form, or None.
        allocator: its text form.
        layers: the pruned layers, in the order in which they were pruned.
        blocks: modules of stacks that were fitted as a whole; none unless the recovery does so.
        outside_blocks: layers in no stack, if the recovery fits blocks.
        left: modules that were left, those with the most multiply-adds first.
        unseen: layers of experts that no calibration token reached: pruned by magnitude.
        zeros_of_parameters: fraction of zeros in all parameters of the model.
        zeros_of_multiply_adds: fraction of the multiply-adds for one token whose weight is zero.
        pruned_multiply_adds: share of the pruned layers in the multiply-adds for one token; of the
            layers that lost rows or columns, in those of the model before.
        seconds: the whole time, running the model included.
        heads: what is left of each attention head, for known model families and torch's attention.
        examples: what the model makes of some texts before and after, for the page; see
            `se.tasks.Comparison`.
        recipe: the arguments, which `read_recipe` reads from a pruning.json.
        calibration: the fingerprint of the calibration inputs, and how many there were.
        versions: of the packages that computed the result.
        metrics: what the caller measures on the result, by name.
        target: what a target came to; None without one.
        sites: places from which structures were removed.
        parameters: of the model before and after structures were removed.
        multiply_adds: the same for one token.
        steps: the reports of the steps before this one, of a run in several steps.
    """

    made_by: ClassVar[str] = "prune"
    heading: ClassVar[str] = "Pruned model"

    granularity: str
    criterion: str
    recovery: str | None
    allocator: str
    layers: list[LayerReport] = field(default_factory=list)
    blocks: list[BlockReport] = field(default_factory=list)
    outside_blocks: list[str] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    zeros_of_parameters: float = 0.0
    zeros_of_multiply_adds: float = 0.0
    pruned_multiply_adds: float = 0.0
    seconds: float = 0.0
    heads: list[HeadsReport] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    target: TargetReport | None = None
    sites: list[SiteReport] = field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)
    multiply_adds: tuple[int, int] = (0, 0)
    steps: list[PruneReport] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over the weights of all pruned layers."""
        weights = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(layer.sparsity * n for layer, n in zip(self.layers, weights, strict=True))
        return zeros / sum(weights) if weights else 0.0

    @property
    def shares(self) -> str:
        """One sentence: zeros of the pruned layers, of all parameters, and of the multiply-adds."""
        return (
            f"zeros: {self.sparsity:.1%} of these layers, {self.zeros_of_parameters:.1%} of all "
            f"parameters, {self.zeros_of_multiply_adds:.1%} of multiply-adds for one token"
        )

    @property
    def sizes(self) -> str:
        """One sentence: parameters and multiply-adds before and after structures were removed."""
        parameters, work = (
            f"{before / 1e6:.4g} to {after / 1e6:.4g} million"
            for before, after in (self.parameters, self.multiply_adds)
        )
        counted = f"; multiply-adds for one token: {work}" if self.multiply_adds[0] else ""
        return f"parameters: {parameters}{counted}"

    @property
    def warnings(self) -> list[str]:
        """Messages for the user, one line each."""
        messages = []
        if self.pruned_multiply_adds < FEW:
            most = self.left[0] if self.left else None
            detail = f"; {most.name} has {most.multiply_adds:.1%}: {most.reason}" if most else ""
            messages.append(
                f"the pruned layers do only {self.pruned_multiply_adds:.1%} of the multiply-adds "
                f"for one token{detail}"
            )
        if self.unseen:
            names = _and_more(self.unseen)
            messages.append(f"no calibration token reached {names}: pruned by magnitude alone")
        if self.outside_blocks:
            names = _and_more(self.outside_blocks)
            messages.append(f"{names}: in no stack, so refitted one layer at a time")
        if not_run := [left.name for left in self.left if left.reason == DID_NOT_RUN]:
            messages.append(f"{_and_more(not_run)} {DID_NOT_RUN}: left as it was")
        if emptied := [layer.name for layer in self.layers if _has_emptied_rows(layer)]:
            messages.append(
                f"{_and_more(emptied)}: more than {EMPTY_ROWS:.0%} of the rows have no weight left"
            )
        limit = max(COLLAPSED, self.sparsity + 0.005)
        if collapsed := [layer.name for layer in self.layers if layer.sparsity > limit]:
            messages.append(
                f"{_and_more(collapsed)}: more than {limit:.1%} of the weights are gone"
            )
        for kind in dict.fromkeys(site.kind for site in self.sites):
            of_kind = [site for site in self.sites if site.kind == kind]
            if floors := [site.name for site in of_kind if site.at_floor]:
                messages.append(f"{_and_more(floors)}: as few {kind}s are left as keep allows")
            if lost := [s.name for s in of_kind if s.is_collapsed and s.name not in floors]:
                messages.append(f"{_and_more(lost)}: more than {LOST:.0%} of the {kind}s are gone")
        by_warning: dict[str, list[str]] = {}
        for site in self.sites:
            by_warning.setdefault(site.warning, []).append(site.name)
        for layer in self.layers:
            by_warning.setdefault(layer.warning, []).append(layer.name)
        messages += [f"{_and_more(by_warning[w])}: {w}" for w in by_warning if w]
        return messages

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        sites = [site.to_dict() for site in self.sites]
        steps = [step.to_dict() for step in self.steps]
        return {**asdict(self), "sites": sites, "steps": steps, "sparsity": self.sparsity}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """See `Report.from_dict`."""
        values = _numbered(values)
        if isinstance(steps := values.get("steps"), list):
            values = {**values, "steps": [_numbered(step) for step in steps]}
        return super().from_dict(values)

    def _pictures(self) -> list[Chart]:
        charts = super()._pictures()
        if any(layer.density for layer in self.layers):
            charts.append(DensityChart(tuple(self.layers)))
        return charts

    def _page(self, title: str) -> Page:
        is_cut = bool(self.sites) and not self.layers  # what is left has no zeros to show
        return Page(
            title,
            self.method,
            (
                *self._figures(),
                (f"{self.seconds:.1f} s", "for pruning"),
                *(self.target.figures if self.target else ()),
                *((f"{value:.4g}", name) for name, value in self.metrics.items()),
            ),
            tuple(self.warnings),
            (
                target_section(self.target),
                shares_section(self.target),
                *(sites_section(cut.sites, _sentence(cut.sizes)) for cut in self._cuts),
                *(() if is_cut else (layers_section(self.layers),)),
                blocks_section(self.blocks),
                density_section(self.layers),
                *(() if is_cut else (units_section(self.layers, self.heads),)),
                examples_section(self.examples),
                left_section(self.left),
                recipe_section(self.recipe, self.calibration, self.versions),
            ),
            footer(),
        )

    @property
    def _cuts(self) -> list[PruneReport]:
        """The steps that removed structures."""
        return [step for step in (*self.steps, self) if step.sites]

    def _figures(self) -> Iterator[tuple[str, str]]:
        """What is left of the model, and how much of it is zero."""
        for name, what in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
            sizes = [size for cut in self._cuts if all(size := getattr(cut, name))]
            if sizes:
                yield percent(sizes[-1][1] / sizes[0][0]), f"of the {what} are left"
        if self.layers or not self.sites:
            yield percent(self.sparsity), f"zeros of the {len(self.layers)} pruned layers"
            yield percent(self.zeros_of_parameters), "zeros of all parameters"
            yield percent(self.zeros_of_multiply_adds), "of the multiply-adds have a zero weight"

    def sites_to_markdown(self) -> str:
        """Table with a row for each site from which structures were removed."""
        lines = ["| site | kept | error before | error after |", "|---|--:|--:|--:|"]
        lines += [
            f"| {site.name} | {len(site.kept)} of {site.groups} {site.kind}s | "
            f"{_error(site.error_before)} | {_error(site.error_after)} |"
            for site in self.sites
        ]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Table with a row for each pruned layer."""
        lines = [
            "| layer | shape | sparsity | error before | error after | seconds |",
            "|---|---|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {row.name} | {row.shape[0]}x{row.shape[1]} | {row.sparsity:.3f} | "
            f"{_error(row.error_before)} | {_error(row.error_after)} | {row.seconds:.2f} |"
            for row in self.layers
        ]
        return "\n".join(lines)

    def left_to_markdown(self) -> str:
        """Table with a row for each module that was left."""
        lines = ["| left alone | weights | of multiply-adds | why |", "|---|--:|--:|---|"]
        lines += [
            f"| {item.name} | {item.weights} | {item.multiply_adds:.1%} | {item.reason} |"
            for item in self.left
        ]
        return "\n".join(lines)

    @property
    def method(self) -> str:
        """Criterion, granularity, allocator and recovery, in one line."""
        parts = (self.criterion, self.granularity, self.allocator, self.recovery)
        return ", ".join(filter(None, parts))

    @property
    def summary(self) -> str:
        """Lines: number of layers or sites, method and time; shares and sizes; warnings."""
        lines = [f"step {i}: {step.summary}" for i, step in enumerate(self.steps, 1)]
        if self.sites:
            lines += [
                f"{len(self.sites)} sites ({self.method}), {self.seconds:.1f} s",
                f"kept: {counts_of(self.sites)}",
                self.sizes,
            ]
        if self.layers or not self.sites:
            several = "" if len(self.layers) == 1 else "s"
            lines += [
                f"{len(self.layers)} layer{several} ({self.method}), {self.seconds:.1f} s",
                self.shares,
            ]
        lines += [
            *([self.target.summary] if self.target else []),
            *(f"warning: {line}" for line in self.warnings),
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        tables = [cut.sites_to_markdown() for cut in self._cuts]
        tables += [self.to_markdown()] if self.layers or not self.sites else []
        tables += [self.left_to_markdown()] if self.left else []
        tables += [self.target.to_markdown()] if self.target else []
        tables += [self.target.shares_to_markdown()] if self.target and self.target.shares else []
        return "\n\n".join([self.summary, *tables])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _numbered(values: Any) -> Any:
    """The plain values of a report with the kept groups of its sites as numbers."""
    sites = values.get("sites") if isinstance(values, Mapping) else None
    if not isinstance(sites, list):
        return values
    return {**values, "sites": [with_numbers(site) for site in sites]}


def _has_emptied_rows(layer: LayerReport) -> bool:
    """Whether many rows are all zero although the granularity does not remove whole rows."""
    rows = layer.shape[0]
    emptied = 0 if layer.rows_kept is None else rows - layer.rows_kept
    return emptied > EMPTY_ROWS * rows and not layer.granularity.endswith("xall")


def _and_more(names: list[str]) -> str:
    """The first name, and how many there are besides it."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"
