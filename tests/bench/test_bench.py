"""Benchmarks print what they promise; no test looks at a time's size."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_engine.bench import linear_grid
from sparse_engine.bench.hints import hints
from sparse_engine.bench.isa import isa_levels
from sparse_engine.bench.kernel import KernelBench, bench_kernel
from sparse_engine.bench.linear import LinearLayer
from sparse_engine.bench.linear_grid import LinearGrid
from sparse_engine.bench.machine import BusyMeter, conditions
from sparse_engine.bench.output import render, summary
from sparse_engine.bench.patterns import random_weight
from sparse_engine.bench.plot import plot_kernels
from sparse_engine.bench.rows import LinearRow
from sparse_engine.bench.timing import Samples, time_in_turn
from sparse_engine.errors import UsageError
from sparse_engine.formats import block_fill
from sparse_engine.reporting.pyplot import load_pyplot

FIELDS = (
    "op n k m sparsity format dtype isa threads time_us dense_time_us speedup gflops roof_fraction "
    "weight_bytes dense_bytes max_rel_err panels_time_us dense_engine peers refused"
)


@pytest.fixture(scope="module")
def rows() -> list[LinearRow]:
    return list(bench_kernel(LinearGrid(n=(24,), k=(40,), m=(1, 3), sparsity=(0.5, 0.9), rounds=1)))


def small(**axes: Any) -> LinearGrid:
    """One layer of 16 x 16 with half of its elements zero, on two tokens, but for `axes`."""
    usual: dict[str, Any] = {"n": (16,), "k": (16,), "m": (2,), "sparsity": (0.5,)}
    return LinearGrid(**usual | {"format": ("csr",), "rounds": 1} | axes)


def test_every_point_has_every_field(rows: list[LinearRow]) -> None:
    assert len(rows) == 8
    plain = json.loads(render(rows, "json"))
    for row in plain:
        assert set(FIELDS.split()) <= set(row)
        assert row["time_us"] > 0
        assert row["max_rel_err"] <= 1e-5
        assert row["dense_bytes"] == 24 * 40 * 4
    read = list(csv.DictReader(io.StringIO(render(rows, "csv"))))
    assert [r["format"] for r in read] == [str(r["format"]) for r in plain]
    table = render(rows, "md").splitlines()
    assert len(table) == 2 + 8
    assert len({line.count("|") for line in table}) == 1
    with pytest.raises(UsageError, match="json"):
        render(rows, "xml")


def test_summary_says_once_what_all_rows_share(rows: list[LinearRow]) -> None:
    about, empty, *table = summary(rows).splitlines()
    assert about.startswith("op linear, source random, n 24, k 40, dtype float32, isa ")
    assert empty == ""
    names = [name.strip() for name in table[0].strip("|").split("|")]
    figures = "m sparsity format time_us dense_time_us speedup roof_fraction max_rel_err"
    assert names == figures.split()
    assert len(table) == 2 + 8
    assert max(map(len, table)) <= 100
    both = summary([rows[0], replace(rows[1], dtype="int8", peers={"torch": 1.0, "scipy": 2.0})])
    head = both.splitlines()[2]
    assert head.startswith("| dtype | m |")
    assert head.endswith("| torch_us | scipy_us |")


def test_chart_is_a_png(rows: list[LinearRow], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_kernels(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_isa_is_forced_for_the_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSE_ENGINE_ISA", raising=False)
    grid = small(dtype=("bfloat16",))
    (row,) = bench_kernel(grid, isa="scalar")
    assert row.isa == "scalar"
    assert row.kernel.endswith("_bf16_scalar")
    assert "SPARSE_ENGINE_ISA" not in os.environ
    with pytest.raises(UsageError, match="avx2"):
        list(bench_kernel(grid, isa="mmx"))


def test_a_signed_part_belongs_to_the_set_before_it() -> None:
    assert isa_levels("scalar,native,-bf16") == ("scalar", "native,-bf16")
    assert isa_levels("avx512,+vnni,+bf16,scalar") == ("avx512,+vnni,+bf16", "scalar")
    assert isa_levels(None) == (None,)


def test_weights_have_the_pattern_of_their_format() -> None:
    for spec, sparsity in (("csr", 0.9), ("bsr:4x1", 0.8), ("bsr:4x4", 0.5)):
        weight = random_weight(64, 64, sparsity, spec)
        zeros = 1 - int(weight.count_nonzero()) / weight.numel()
        assert zeros == pytest.approx(sparsity, abs=0.01)
    assert block_fill(random_weight(64, 64, 0.8, "bsr:4x1"), 4, 1) == 1.0
    groups = random_weight(8, 16, 0.5, "nm:2:4").reshape(8, 4, 4)
    assert ((groups != 0).sum(-1) == 2).all()


@pytest.mark.parametrize(
    "bad",
    [{"n": (0,)}, {"m": (-1,)}, {"sparsity": (1.0,)}, {"format": ("coo",)}, {"dtype": ("int4",)}],
)
def test_bad_grids_are_refused(bad: dict[str, tuple[object, ...]]) -> None:
    with pytest.raises(UsageError):
        LinearGrid(**bad)  # type: ignore[arg-type]


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = time_in_turn(calls, rounds=3)
    assert set(times) == {"a", "b"}
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(runs).endswith("ababab")
    assert torch.get_num_threads() >= 1


def test_each_point_once() -> None:
    """N:M has one sparsity whatever is asked for, and what is asked for twice counts once."""
    grid = small(m=(2, 2), sparsity=(0.5, 0.9, 0.9), format=("nm:2:4", "csr", "csr"))
    points = [(row.format, row.sparsity, row.m) for row in bench_kernel(grid)]
    assert len(points) == len(grid) == len(set(points))
    assert [point[0] for point in points] == ["nm:2:4", "csr", "csr"]


def test_each_kernel_once_over_all_levels() -> None:
    bench = KernelBench()
    grid = small(m=(1, 32))
    levels = isa_levels("all")
    assert levels[0] == "scalar"
    rows = [row for level in levels for row in bench.run(grid, level)]
    kernels = [(row.m, row.kernel) for row in rows]
    assert len(kernels) == len(set(kernels))
    assert len(rows) + sum(bench.repeated.values()) == len(levels) * len(grid)
    assert {row.isa for row in rows} <= {"scalar", "avx2", "avx512"}  # others are for other dtypes


def test_auto_takes_a_format_a_token_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_ENGINE_CACHE", "")
    chosen = {1: "sellp", 20: "csr"}
    monkeypatch.setattr(linear_grid, "fastest_format", lambda weight, dtype, m: chosen[m])
    measured: list[tuple[str, int]] = []
    measure = LinearLayer.measure
    monkeypatch.setattr(
        LinearLayer,
        "measure",
        lambda layer, m, run: (measured.append((layer.spec, m)), measure(layer, m, run))[1],
    )
    rows = list(bench_kernel(small(m=(1, 20), format=("auto", "csr"))))
    assert [(row.format, row.m) for row in rows] == [
        ("csr", 1),
        ("csr", 20),
        ("auto:sellp", 1),
        ("auto:csr", 20),
    ]
    assert measured == [("csr", 1), ("csr", 20), ("sellp", 1)]  # csr on 20 tokens only once
    assert rows[1].time_us == rows[3].time_us


def test_auto_is_what_the_timer_chooses() -> None:
    (row,) = bench_kernel(small(n=(64,), k=(64,), sparsity=(0.9,), format=("auto",)))
    assert row.format.removeprefix("auto:") in ("csr", "sellp", "bitmask")


def test_spread_of_samples() -> None:
    samples = Samples((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0))
    assert (samples.median, samples.spread) == (6.0, (2.0, 10.0))
    assert Samples((3.0,)).spread == (3.0, 3.0)


def test_rows_have_spread_bandwidth_and_conditions(rows: list[LinearRow]) -> None:
    for row in json.loads(render(rows, "json", conditions())):
        low, high = row["spread_us"]["time"]
        assert low == row["time_us"] == high  # one sample
        assert set(row["spread_us"]) == {"time", "torch"}
        moved = row["weight_bytes"] + 4 * row["m"] * (row["n"] + row["k"])
        assert row["gbytes_per_s"] == pytest.approx(moved / row["time_us"] / 1e3, abs=0.01)
        assert {"cpu", "isa", "threads", "torch", "sparse_engine", "date"} <= set(row["conditions"])
    head = render(rows, "csv").splitlines()[0].split(",")
    assert {"time_p10_us", "time_p90_us", "torch_p10_us", "torch_p90_us"} <= set(head)


class Clock:
    """perf_counter for a spin that takes the given seconds, over and over."""

    def __init__(self, *taken: float) -> None:
        self.now, self.taken, self.count = 0.0, taken, 0

    def __call__(self) -> float:
        return self.now

    def spin(self) -> None:
        self.now += self.taken[self.count % len(self.taken)]
        self.count += 1


def test_busy_machines_give_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for taken, share in (((1e-3, 1e-3), 0.0), ((1e-3, 3e-3), 0.5)):
        clock = Clock(*taken)
        monkeypatch.setattr("sparse_engine.bench.machine.perf_counter", clock)
        meter = BusyMeter(clock.spin)
        assert meter.start() == pytest.approx(share, abs=0.02)
        assert meter.look() == pytest.approx(share, abs=0.05)
        assert (meter.warning() is None) == (share == 0)
    quiet, then = Clock(1e-3), Clock(1e-3, 9e-3)
    monkeypatch.setattr("sparse_engine.bench.machine.perf_counter", quiet)
    meter = BusyMeter(lambda: quiet.spin())
    meter.start()
    quiet.taken = then.taken  # others start in the middle of the run
    meter.look()
    assert "up to 8" in str(meter.warning())


def row_of(rows: list[LinearRow], **other: object) -> LinearRow:
    return replace(rows[0], **other)  # type: ignore[arg-type]


def test_hints_name_what_is_faster_on_the_same_weight(rows: list[LinearRow]) -> None:
    slow = row_of(rows, format="csr", time_us=30.0, likely_faster="sellp")
    assert hints([slow]) == [
        "1 token, float32: sellp is likely faster than csr by the cost model: --format csr,sellp"
    ]
    other = replace(slow, source="other", n=slow.n + 1)
    assert hints([slow, other, replace(other, source="third")]) == hints([slow])
    fast = row_of(rows, format="sellp", time_us=10.0, likely_faster="")
    assert hints([slow, fast]) == ["1 token, float32: sellp is 3.0x as fast as csr"]
    # A weight of whole blocks is another one, and what is about as fast is no hint.
    blocks = row_of(rows, format="bsr:4x1", time_us=1.0, likely_faster="")
    assert hints([fast, blocks]) == []
    assert hints([fast, row_of(rows, format="csr", time_us=10.5, likely_faster="")]) == []
    assert (
        "--pattern 4x1:1 --format bsr:4x1,sellp"
        in hints([replace(blocks, likely_faster="sellp")])[0]
    )


def test_the_cost_model_prefers_sellp_for_one_token() -> None:
    (row,) = bench_kernel(small(m=(1,), n=(256,), k=(256,), sparsity=(0.9,)))
    assert row.likely_faster == "sellp"


def test_chart_has_powers_of_two_and_a_legend_beside(
    rows: list[LinearRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    pyplot = load_pyplot()
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    some = [
        row_of(rows, m=m, sparsity=s, speedup=x)
        for m in (1, 16)
        for s, x in ((0.5, 0.6), (0.9, 3.0))
    ]
    plot_kernels(some, tmp_path / "a.png")
    figure = pyplot.gcf()
    monkeypatch.undo()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["0.5x", "1x", "2x", "4x"]
    (legend,) = figure.legends
    renderer = figure.canvas.get_renderer()
    right = max(axis.get_window_extent(renderer).x1 for axis in figure.axes)
    assert legend.get_window_extent(renderer).x0 >= right
    pyplot.close(figure)
