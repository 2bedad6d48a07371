"""The sections of the page of a sensitivity report; every number comes from its trials."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sparse_engine.analysis.trial import Scale, Trial, show
from sparse_engine.reporting.chart import Chart, Table
from sparse_engine.reporting.front_chart import FrontChart, Point, pareto_front
from sparse_engine.reporting.heat_map import HeatMap
from sparse_engine.reporting.line_chart import Line, LineChart
from sparse_engine.reporting.names import short_names, split_name
from sparse_engine.reporting.page import Section

CURVES = 6
"""Layers in the chart of the most sensitive ones."""


def ranking(trials: Sequence[Trial], scale: Scale) -> dict[str, float]:
    """Each layer with its mean loss over all settings, the most sensitive first.

    A layer for which the metric is not finite comes before all others.
    """
    losses: dict[str, list[float]] = {}
    for trial in trials:
        loss = float("inf") if trial.metric is None else scale.loss(trial.metric)
        losses.setdefault(trial.layer, []).append(loss)
    means = {layer: fmean(values) for layer, values in losses.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def model_section(trials: Sequence[Trial], scale: Scale, timed_on: str) -> Section:
    """All layers together: the metric by sparsity, and by milliseconds if calls were timed."""
    if not trials:
        return Section("")
    charts: list[Chart] = [_by_sparsity(trials, scale)]
    text = [f"Dense model: {scale.metric} {show(scale.dense)}."]
    points = [(t.ms, t.metric, t) for t in trials if t.ms is not None and t.metric is not None]
    if points:
        text.append(
            f"Times are of {timed_on}, with the format that is the fastest for each layer. A "
            "setting is on the front if no other one is both faster and better."
        )
        dense_ms = fmean(t.dense_ms for t in trials if t.dense_ms is not None)
        reference = Point(dense_ms, scale.dense, "dense torch", "dense")
        settings = tuple(
            Point(ms, metric, t.granularity, f"{100 * t.sparsity:.0f}") for ms, metric, t in points
        )
        charts.append(
            FrontChart(
                "front",
                f"{scale.metric} by time",
                f"{len(settings)} settings by milliseconds of a call and {scale.metric}, with the "
                "dense model. The labels are percent of zeros. The table has the numbers.",
                "ms of a call",
                scale.metric,
                settings,
                reference,
                scale.higher_is_better,
            )
        )
    return Section(
        "All layers together",
        tuple(text),
        tuple(charts),
        table=model_table(trials, scale),
        table_title="All settings",
    )


def _by_sparsity(trials: Sequence[Trial], scale: Scale) -> LineChart:
    lines: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        if trial.metric is not None:
            point = (round(100 * trial.sparsity, 1), trial.metric)
            lines.setdefault(trial.granularity, []).append(point)
    return LineChart(
        "sparsity",
        f"{scale.metric} by sparsity",
        f"{scale.metric} with all layers pruned, by percent of zeros: a line for each pattern, and "
        "a dashed one for the dense model. The table has the numbers.",
        "% of zeros",
        scale.metric,
        tuple(Line(name, tuple(sorted(points))) for name, points in lines.items()),
        level=("dense", scale.dense),
    )


def model_table(trials: Sequence[Trial], scale: Scale) -> Table:
    """A row for each setting of all layers together."""
    front = front_of(trials, scale.higher_is_better)
    rows = tuple(
        (
            trial.granularity,
            f"{100 * trial.sparsity:.1f} %",
            show(trial.metric),
            "" if trial.ms is None else f"{trial.ms:.3f}",
            "" if trial.dense_ms is None else f"{trial.dense_ms:.3f}",
            speed_up(trial),
            "yes" if trial in front else "",
        )
        for trial in trials
    )
    head = ("pattern", "zeros", scale.metric, "ms", "dense ms", "speed-up", "on the front")
    return Table(head, rows)


def speed_up(trial: Trial) -> str:
    """Dense time over sparse time, timed in turn; "" without times."""
    return f"{trial.dense_ms / trial.ms:.2f}x" if trial.ms and trial.dense_ms else ""


def front_of(trials: Sequence[Trial], higher_is_better: bool) -> list[Trial]:
    """The timed settings that no other one beats in both time and metric, by rising time."""
    timed = {
        Point(t.ms, t.metric, t.granularity, t.setting): t
        for t in trials
        if t.ms is not None and t.metric is not None
    }
    return [timed[point] for point in pareto_front(timed, higher_is_better)]


def layers_section(trials: Sequence[Trial], scale: Scale) -> Section:
    """One layer at a time: curves of the most sensitive layers, a map of all, and a table."""
    if not trials:
        return Section("")
    ranked = ranking(trials, scale)
    granularities = list(dict.fromkeys(trial.granularity for trial in trials))
    charts: list[Chart] = []
    for number, granularity in enumerate(granularities):
        own = [trial for trial in trials if trial.granularity == granularity]
        suffix = f"-{number}" if number else ""
        if len({trial.requested for trial in own}) > 1:
            charts.append(_curves(f"curves{suffix}", own, scale, list(ranked)))
        charts.append(_map(f"layers{suffix}", own, scale))
    most, least = next(iter(ranked)), next(reversed(ranked))
    return Section(
        "One layer at a time",
        (
            "Each layer is pruned alone, while the others stay dense. Most sensitive, over all "
            f"settings: {most}; least: {least}.",
        ),
        tuple(charts),
        table=layer_table(trials, scale),
        table_title=f"{scale.metric} of all {len(ranked)} layers",
    )


def _curves(name: str, trials: Sequence[Trial], scale: Scale, ranked: list[str]) -> LineChart:
    """The most sensitive layers by sparsity, and the least sensitive one."""
    present = {trial.layer for trial in trials}
    ranked = [layer for layer in ranked if layer in present]
    chosen = dict.fromkeys([*ranked[: CURVES - 1], ranked[-1]])
    lines = [
        Line(
            _numbered(layer),
            tuple(
                sorted(
                    (round(100 * trial.sparsity, 1), trial.metric)
                    for trial in trials
                    if trial.layer == layer and trial.metric is not None
                )
            ),
        )
        for layer in chosen
    ]
    granularity = trials[0].granularity
    return LineChart(
        name,
        f"The most sensitive layers, and the least one: {granularity}",
        f"{scale.metric} by percent of zeros of the one layer that is pruned, for "
        f"{len(lines)} layers. The table below has all layers.",
        "% of zeros of the layer",
        scale.metric,
        tuple(line for line in lines if line.points),
        level=("dense", scale.dense),
    )


def _numbered(layer: str) -> str:
    """A layer by the number of its block and its role."""
    block, role = split_name(layer)
    return ".".join(filter(None, (block.rpartition(".")[2], role)))


def _map(name: str, trials: Sequence[Trial], scale: Scale) -> HeatMap:
    """The loss at the largest sparsity: blocks below each other, roles side by side."""
    largest = max(trials, key=lambda trial: trial.requested or 0.0)
    cells: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        if trial.requested == largest.requested and trial.metric is not None:
            cells.setdefault(split_name(trial.layer), []).append(scale.loss(trial.metric))
    blocks = list(dict.fromkeys(block for block, _ in cells))
    roles = list(dict.fromkeys(role for _, role in cells))
    short = short_names(roles)
    losses = {key: fmean(values) for key, values in cells.items()}
    low, high = min(losses.values(), default=0), max(losses.values(), default=0)
    return HeatMap(
        name,
        f"Loss of {scale.metric}: {largest.setting}",
        f"How much worse {scale.metric} is with one layer at {largest.setting}, from {show(low)} "
        f"to {show(high)}: a row for each block, a column for each kind of layer.",
        "",
        "",
        tuple(short[role] or "layer" for role in roles),
        tuple(block or "layers" for block in blocks),
        tuple(tuple(losses.get((block, role)) for role in roles) for block in blocks),
        min(low, 0.0),
        high if high > min(low, 0.0) else low + 1e-9,
        lambda value: f"{value:.2g}",
    )


def layer_table(trials: Sequence[Trial], scale: Scale) -> Table:
    """A row for each layer in the order of the model, a column for each setting."""
    settings = list(dict.fromkeys(trial.setting for trial in trials))
    ranks = {layer: rank for rank, layer in enumerate(ranking(trials, scale), 1)}
    cells: dict[str, dict[str, str]] = {}
    for trial in trials:
        cells.setdefault(trial.layer, {})[trial.setting] = show(trial.metric)
    rows = tuple(
        (layer, str(ranks[layer]), *(row.get(setting, "") for setting in settings))
        for layer, row in cells.items()
    )
    return Table(("layer", "rank", *settings), rows)
