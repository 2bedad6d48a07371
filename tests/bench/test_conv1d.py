"""Benchmarks of convolutions over time print what they promise; no test looks at a time's size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from sparse_engine.bench.conv1d import Conv1dGrid
from sparse_engine.bench.kernel import bench_kernel
from sparse_engine.cli.app import app
from sparse_engine.errors import SparseEngineError


def test_every_point_is_measured_and_right() -> None:
    shape: dict[str, Any] = {"n": (24,), "k": (10,), "width": 3, "steps": 20}
    grid = Conv1dGrid(
        **shape,
        m=(1, 5),
        sparsity=(0.5,),
        format=("csr", "sellp"),
        dtype=("float32", "int8"),
        rounds=1,
    )
    rows = list(bench_kernel(grid))
    assert len(rows) == len(grid) == 8
    for row in rows:
        assert row.time_us > 0
        assert row.windows_us > 0
        assert row.sparsity == pytest.approx(0.5, abs=0.02)
        assert row.max_rel_err < (1e-5 if row.dtype == "float32" else 0.1)
        assert (row.product_us is None) == (row.format == "sellp")
        assert (row.speedup is None) == ("torch" in row.refused) == (row.dtype == "int8")


@pytest.mark.parametrize("output", ["table", "md", "csv", "json"])
def test_bench_from_the_command_line(output: str) -> None:
    options = "-n 16 -k 8 -m 1 --width 3 --steps 20 --sparsity 0.5 --rounds 1 --format csr".split()
    done = CliRunner().invoke(app, ["bench", "kernel", "--op", "conv1d", *options, "-o", output])
    assert done.exit_code == 0, done.output
    assert "conv1d" in done.stdout
    if output == "json":
        (row,) = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
        assert (row["op"], row["n"], row["k"], row["width"], row["steps"]) == (
            "conv1d",
            16,
            8,
            3,
            20,
        )


def test_bench_refuses_what_it_cannot_measure() -> None:
    for bad, why in (
        (["-m", "0"], "-m"),
        (["--matrix", "a.npy"], "--matrix: not an option of --op conv1d"),
        (["--layers", "2"], "--layers: not an option of --op conv1d"),
        (["--dtype", "int4"], "int4"),
        (["--sparsity", "1"], "fraction"),
        (["--format", "csc"], "csc"),
    ):
        done = CliRunner().invoke(app, ["bench", "kernel", "--op", "conv1d", *bad])
        assert isinstance(done.exception, SparseEngineError), done.output
        assert why in str(done.exception)
