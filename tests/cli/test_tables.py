"""Tables of the command line fit 80 columns, and names are broken at dots only."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import pytest

from sparse_engine.analysis.report import SensitivityReport
from sparse_engine.analysis.trial import Trial
from sparse_engine.bench.conv1d import Conv1dGrid
from sparse_engine.bench.kernel import bench_kernel
from sparse_engine.bench.linear_grid import LinearGrid
from sparse_engine.bench.model import ModelRow
from sparse_engine.bench.recurrent import NetworkGrid
from sparse_engine.bench.rows import LinearRow
from sparse_engine.cli.bench_tables import kernel_tables, model_tables
from sparse_engine.cli.prune_tables import prune_tables
from sparse_engine.cli.sensitivity_tables import sensitivity_tables
from sparse_engine.convert.sparsify import SparsifyRow
from sparse_engine.pruning.layer_report import LayerReport, Left
from sparse_engine.pruning.report import PruneReport
from sparse_engine.reporting.tables import fold, layer_tables, show

TINY: dict[str, Any] = {"n": (8,), "m": (1,), "sparsity": (0.5,), "format": ("csr",), "rounds": 1}
NAME = "model.decoder.layers.10.encoder_attention.attention.output_projection"


def lines(*parts: object) -> list[str]:
    """What `show` prints where there is no terminal."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.delenv("COLUMNS", raising=False)
        show(*parts)  # type: ignore[arg-type]
    return out.getvalue().splitlines()


def fits(*parts: object) -> list[str]:
    """The lines, none of which is longer than 80 columns or cut short."""
    found = lines(*parts)
    assert max(map(len, found)) <= 80
    assert not any("…" in line for line in found)
    return found


@pytest.fixture(scope="module")
def row() -> LinearRow:
    return next(bench_kernel(LinearGrid(**TINY, k=(8,))))


def test_names_fold_at_dots() -> None:
    assert fold("encoder.layer.0.output", 30) == "encoder.layer.0.output"
    folded = fold(NAME, 30).split("\n")
    assert "".join(part.strip() for part in folded) == NAME
    assert all(part.endswith(".") for part in folded[:-1])
    assert all(len(part) <= 30 for part in folded)
    assert fold("word" * 20, 30) == "word" * 20


def test_kernel_table_of_large_figures(row: LinearRow) -> None:
    large = replace(
        row,
        m=100000,
        sparsity=0.9995,
        format="auto:bsr:16x16",
        time_us=1234567.8,
        dense_time_us=9999999.9,
        speedup=1234.5,
        gflops=1234.5,
        spread_us={"time": (123456.7, 99999999.0)},
    )
    found = fits(*kernel_tables([row, large]))
    assert any("1235" in line and "auto:bsr:16x16" in line for line in found)
    assert any(f"{row.max_rel_err:.0e}" in line for line in found)


def test_fastest_of_the_same_weight_is_marked(row: LinearRow) -> None:
    slow, fast = (replace(row, format=f, time_us=t) for f, t in (("csr", 9.0), ("sellp", 3.0)))
    other = replace(row, format="bsr:4x1", time_us=1.0)  # a pattern of its own
    text = "\n".join(fits(*kernel_tables([slow, fast, other])))
    assert "sellp*" in text
    assert "csr*" not in text
    assert "bsr:4x1*" not in text


def test_peers_have_a_table(row: LinearRow) -> None:
    peers = dict.fromkeys(("torch", "onnxruntime", "openvino", "scipy", "torch-csr"), 3.0)
    text = "\n".join(fits(*kernel_tables([replace(row, peers=peers)])))
    assert "onnxruntime" in text
    assert "median us of every peer" not in "\n".join(fits(*kernel_tables([row])))


def test_networks_and_models() -> None:
    grid = NetworkGrid(**TINY, op="rnn", dtype=("int8",), steps=2)
    fits(*kernel_tables(list(bench_kernel(grid))))
    fits(*kernel_tables(list(bench_kernel(Conv1dGrid(**TINY, dtype=("float32", "int8"))))))
    rows = [ModelRow("sparse_engine", 1, 128, 1234.56, 1234.56, 1.0, 123.45, 1.0, 12345.6)]
    rows.append(ModelRow("onnxruntime:int8", 1, 128, problem="is not there"))
    fits(*model_tables(rows))


def test_layers_of_a_model() -> None:
    times = {"dense": {1: 4.0, 128: 6.0}, "bsr:16x1": {1: 2.0, 128: 3.0}}
    reason = "time over dense: csr 1.05, sellp 1.07, dense 1.00, as measured before"
    large = (128256, 16384)
    rows = [
        SparsifyRow(NAME, large, 0.9, "bsr:16x1", "kernel", 8_405_385_216, 840_538_521, "", times),
        SparsifyRow("head", large, 0.0, "dense", "", 1, 1, reason),
        SparsifyRow("other", large, 0.0, "dense", "", 1, 1, reason),
    ]
    text = "\n".join(fits(*layer_tables(rows)))
    assert "0.50" in text
    assert text.count("time over dense") == 1  # two layers, one reason
    report = PruneReport("element", "sparsegpt", "least_squares", "uniform")
    report.layers.append(LayerReport(NAME, large, "element", 0.9, 0.123, None, 123.4))
    report.left = [Left(f"{NAME}.{i}", 500_000, 0.25, "a head") for i in range(4)]
    text = "\n".join(fits(*prune_tables(report)))
    assert "100.0%" in text
    assert "2.00" in text
    assert "and 1 more" in text
    assert any("123.40" in line for line in fits(*prune_tables(report)))


def test_many_settings_are_in_several_tables() -> None:
    trials = [
        Trial(f"{NAME}.{i}", granularity, sparsity, sparsity, 0.123456)
        for i in range(12)
        for granularity in ("element", "16x32")
        for sparsity in (0.5, 0.6, 0.7, 0.875)
    ]
    trials.append(Trial("", "16x32", 0.9, 0.9, 1e-12, 12345.678, 123456.78))
    report = SensitivityReport("KL divergence to dense", False, 0.0, "magnitude", None, trials)
    tables = list(sensitivity_tables(report))
    assert len(tables) == 3
    text = "\n".join(fits(*tables))
    assert "16x32*" in text
    assert "10.00x" in text
