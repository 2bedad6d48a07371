"""A value of each layer as lines over the blocks of a model: one line for each role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from sparse_engine.reporting.line_chart import Line, LineChart
from sparse_engine.reporting.names import short_names, split_name


@dataclass(frozen=True)
class Values:
    """A value of each layer by its dotted name, and perhaps a second, faint one.

    Attributes:
        name: of the picture's file.
        title: of the chart.
        label: of the axis of the values.
        of: the values.
        faint: the second values, of the same layers.
        faint_label: what they are.
        percent: whether the values are shares, to be written in percent.
    """

    name: str
    title: str
    label: str
    of: Mapping[str, float]
    faint: Mapping[str, float]
    faint_label: str = "mask alone"
    percent: bool = False

    def show(self, value: float) -> str:
        """A value in a sentence."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}"


def charts_by_block(values: Values) -> list[LineChart]:
    """A chart for each stack of numbered blocks, and one for all layers outside of stacks.

    The mean is drawn where layers of a block have one role, such as experts.
    """
    stacks: dict[str, list[str]] = {}
    for name in values.of:
        block = split_name(name)[0]
        stacks.setdefault(block.rpartition(".")[0] if block else "", []).append(name)
    rest: list[str] = []
    charts: list[LineChart] = []
    for number, (stack, names) in enumerate(stacks.items()):
        if len({split_name(name)[0] for name in names}) < 2:
            rest += names
            continue
        roles: dict[str, list[str]] = {}
        for name in names:
            roles.setdefault(split_name(name)[1], []).append(name)
        short = short_names(roles)
        lines: list[Line] = []
        for role, members in roles.items():
            lines.append(Line(short[role] or "layer", _points(members, values.of)))
            if any(name in values.faint for name in members):
                label = f"{short[role] or 'layer'}, {values.faint_label}"
                lines.append(Line(label, _points(members, values.faint), faint=True))
        charts.append(_chart(values, number, stack, lines, ()))
    if rest:
        short = short_names(rest)
        lines = [Line(values.label, tuple((i, values.of[n]) for i, n in enumerate(rest)))]
        faint = tuple((i, values.faint[n]) for i, n in enumerate(rest) if n in values.faint)
        if faint:
            lines.append(Line(values.faint_label, faint, faint=True))
        charts.append(_chart(values, len(stacks), "", lines, tuple(short[n] for n in rest)))
    return charts


def _points(names: Iterable[str], of: Mapping[str, float]) -> tuple[tuple[float, float], ...]:
    """Block number and mean value."""
    found: dict[int, list[float]] = {}
    for name in names:
        if name in of:
            found.setdefault(int(split_name(name)[0].rpartition(".")[2]), []).append(of[name])
    return tuple((block, fmean(all_of)) for block, all_of in sorted(found.items()))


def _chart(
    values: Values, number: int, stack: str, lines: list[Line], x_names: tuple[str, ...]
) -> LineChart:
    where = f" in {stack}" if stack else ""
    drawn = [y for line in lines if not line.faint for _, y in line.points]
    return LineChart(
        f"{values.name}-{number}" if number else values.name,
        f"{values.title}{where}",
        f"{values.title}{where}: a line for each kind of layer, from "
        f"{values.show(min(drawn))} to {values.show(max(drawn))}. The table below has the numbers.",
        "layer" if x_names else "block",
        values.label,
        tuple(lines),
        x_names=x_names,
        percent=values.percent,
        whole_x=True,
        from_zero=True,
    )
