"""Benchmarks print what they promise; no test looks at a time's size."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
import torch

from sparse_engine.bench.grid import KernelGrid
from sparse_engine.bench.kernel import bench_kernel
from sparse_engine.bench.output import render
from sparse_engine.bench.patterns import random_weight
from sparse_engine.bench.plot import plot_kernels
from sparse_engine.bench.timing import time_in_turn
from sparse_engine.errors import UsageError
from sparse_engine.formats import block_fill

FIELDS = (
    "op n k m sparsity format dtype isa threads time_us dense_time_us speedup gflops roof_fraction "
    "weight_bytes dense_bytes max_rel_err panels_time_us dense_engine peers refused"
)


@pytest.fixture(scope="module")
def rows() -> list[object]:
    grid = KernelGrid((24,), (40,), (1, 3), (0.5, 0.9), ("csr", "bsr:4x1"), ("float32",), rounds=1)
    return list(bench_kernel(grid))


def test_every_point_has_every_field(rows: list[object]) -> None:
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


def test_chart_is_a_png(rows: list[object], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_kernels(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_isa_is_forced_for_the_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSE_ENGINE_ISA", raising=False)
    grid = KernelGrid((8,), (8,), (2,), (0.5,), ("csr",), ("bfloat16",), rounds=1)
    (row,) = bench_kernel(grid, isa="scalar")
    assert row.isa == "scalar"
    assert row.kernel.endswith("_bf16_scalar")
    assert "SPARSE_ENGINE_ISA" not in os.environ
    with pytest.raises(UsageError, match="avx2"):
        list(bench_kernel(grid, isa="mmx"))


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
        KernelGrid(**bad)


def test_rivals_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = time_in_turn(calls, rounds=3)
    assert set(times) == {"a", "b"}
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(runs).endswith("ababab")
    assert torch.get_num_threads() >= 1
