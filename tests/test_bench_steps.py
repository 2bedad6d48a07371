"""bench kernel --steps 1: a single step, and what the library takes of it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sparse_engine.cli import app


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_single_steps_are_measured(op: str, dtype: str) -> None:
    line = f"bench kernel --op {op} -n 16 -m 1 --sparsity 0.5 --format csr --steps 1 --rounds 1"
    result = CliRunner().invoke(app, [*line.split(), "--dtype", dtype, "--output", "json"])
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)[0]
    assert row["steps"] == 1
    assert row["native_us"] > 0
    assert row["max_rel_err"] < 2e-2
