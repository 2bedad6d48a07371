"""bench kernel --steps 1: a single step, and its time inside the native library."""

from __future__ import annotations

import pytest

from sparse_engine.bench.kernel import bench_kernel
from sparse_engine.bench.recurrent import NetworkGrid


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_single_steps_are_measured(op: str, dtype: str) -> None:
    grid = NetworkGrid(
        op=op,
        n=(16,),
        m=(1, 3),
        sparsity=(0.5,),
        format=("csr",),
        dtype=(dtype,),
        steps=1,
        rounds=1,
    )
    rows = list(bench_kernel(grid))
    assert [row.m for row in rows] == [1, 3]
    for row in rows:
        assert row.steps == 1
        assert row.native_us is not None
        assert row.native_us > 0
        assert row.max_rel_err < 2e-2
        assert set(row.spread_us) == {"time", "dense_time", "native"}
