"""Benchmarks of recurrent networks print what they promise; no test looks at a time's size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script
from typer.testing import CliRunner

from sparse_engine.bench.kernel import bench_kernel
from sparse_engine.bench.recurrent import NetworkGrid, random_network
from sparse_engine.cli.app import app
from sparse_engine.errors import SparseEngineError, UsageError


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_every_point_is_measured_and_right(op: str) -> None:
    grid = NetworkGrid(
        op=op,
        n=(32,),
        m=(1, 9),
        sparsity=(0.5,),
        format=("csr", "bsr:16x1"),
        dtype=("float32", "int8"),
        steps=6,
        rounds=1,
    )
    rows = list(bench_kernel(grid))
    assert len(rows) == len(grid) == 8
    for row in rows:
        assert row.time_us > 0
        assert row.step_us == pytest.approx(row.time_us / 12, rel=0.01)
        assert row.sparsity == pytest.approx(0.5, abs=0.05)
        assert row.max_rel_err < (1e-5 if row.dtype == "float32" else 0.3)
        if op == "rnn" and row.dtype == "int8":
            assert row.dense_time_us is None
            assert "nn.RNN" in row.refused["torch"]
        else:
            assert row.speedup is not None
            assert row.speedup > 0


def test_states_neither_die_out_nor_explode() -> None:
    for op in ("lstm", "gru", "rnn"):
        network = random_network(op, 64, 1, 0.9, "csr")
        y = network(torch.randn(200, 4, 64))[0]
        assert 0.02 < float(y[-1].abs().mean()) < 1
        assert math.isfinite(float(y.abs().max()))


def test_from_the_command_line() -> None:
    options = "-n 32 -m 1 --sparsity 0.5 --layers 1 --steps 3 --rounds 1 --format csr".split()
    done = CliRunner().invoke(app, ["bench", "kernel", "--op", "gru", *options, "-o", "json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
    assert (row["op"], row["n"], row["steps"]) == ("gru", 32, 3)
    for bad, why in (
        (["--op", "tcn"], "tcn"),
        (["--op", "lstm", "--plot", "a.png"], "--plot"),
        (["--op", "lstm", "--against", "scipy"], "--against"),
        (["--op", "lstm", "-n", "0"], "-n"),
        (["--op", "lstm", "-k", "8"], "-k: not an option of --op lstm"),
        (["--op", "linear", "--steps", "8"], "--steps: not an option of --op linear"),
        (["--op", "lstm", "--dtype", "int4"], "int4"),
        (["--op", "lstm", "--sparsity", "1"], "fraction"),
    ):
        done = CliRunner().invoke(app, ["bench", "kernel", *bad])
        assert isinstance(done.exception, SparseEngineError), done.output
        assert why in str(done.exception)


def test_the_tagger_reads_what_is_published(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tagger = load_script("tagger")
    source = np.random.default_rng(0)
    sizes = {
        "embedding.weight": (9, 6),
        "logit_layer.0.weight": (5, 16),
        "logit_layer.0.bias": (5,),
    }
    sizes |= {"logit_layer.2.weight": (4, 5), "logit_layer.2.bias": (4,)}
    for end in ("", "_reverse"):
        sizes |= {f"lstm.weight_ih_l0{end}": (32, 6), f"lstm.weight_hh_l0{end}": (32, 8)}
        sizes |= {f"lstm.bias_ih_l0{end}": (32,), f"lstm.bias_hh_l0{end}": (32,)}
    arrays = {n: source.standard_normal(s).astype(np.float32) for n, s in sizes.items()}
    np.savez(tmp_path / "g2pM.npz", **arrays)
    words = ["<PAD>", "<UNK>", "시", "끝", *"abcde"]
    (tmp_path / "char2idx.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "class2idx.json").write_text(json.dumps({f"c{i}": i for i in range(4)}))
    data = tmp_path / "cpp_dataset"
    data.mkdir()
    for part in ("dev", "test"):
        (data / f"{part}.sent").write_text("ab▁c▁dz\n▁e▁a\nabcd▁e▁\n")
        (data / f"{part}.lb").write_text("c1\nc0\nc3\n")
    (batch,) = tagger.in_batches(tagger.read_sentences(tmp_path, "test"))
    assert batch.ids.tolist()[0][:4] == [2, 8, 4, 3]
    assert batch.positions.tolist() == [1, 5, 3] or batch.positions.tolist() == [1, 3, 5]
    rows = list(tagger.measure(tmp_path, (0.5,)))
    assert [row.model for row in rows] == [
        "torch, dense",
        "converted",
        "magnitude",
        "sparsegpt + least_squares",
    ]
    assert rows[1].same_as_dense == 1.0
    (data / "test.lb").write_text("c1\n")
    with pytest.raises(SparseEngineError, match="3 texts"):
        tagger.read_sentences(tmp_path, "test")
    assert issubclass(UsageError, SparseEngineError)
