"""The extension in a process: one OpenMP runtime, and no symbols that leak a target's code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_openmp_runtime_in_the_process() -> None:
    """Two runtimes would have two pools of spinning threads: ten times slower on two cores."""
    mapped = python(
        "import sparse_engine as se, torch\n"
        "w = torch.randn(512, 512)\n"
        "se.ops.linear(se.CSR.from_dense(w), torch.randn(128, 512))\n"
        "torch.nn.functional.linear(w, w)\n"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.split()[-1]})"
    )
    paths = {p for p in mapped.strip("{}\n").replace("'", "").split(", ") if "omp" in p}
    assert len(paths) == 1, paths
    assert "torch" in paths.pop()


def test_import_is_cheap() -> None:
    loaded = python("import sparse_engine, sys; print(*sys.modules)").split()
    for heavy in ("transformers", "triton", "fastapi", "matplotlib", "tokenizers", "uvicorn"):
        assert heavy not in loaded


def test_target_objects_export_only_kernels() -> None:
    """The linker could use a weak template built with AVX-512 flags for the whole program."""
    nm = shutil.which("nm")
    # Objects of `make sanitize` contain the symbols of the sanitizers.
    found = (ROOT / "build").rglob("se_*.dir/**/*.o")
    objects = [path for path in found if "sanitize-objects" not in path.parts]
    if nm is None or not objects:
        pytest.skip("needs nm and the build folder of an editable install")
    prefixes = (
        "spmm_strips_",
        "spmv_strips_",
        "spmm_runs_",
        "spmv_sellp_",
        "spmv_groups_",
        "spmv_bits_",
        "prepare_bits_",
        "spmm_columns_",
        "spmm_half_runs_",
        "token_scales_",
        "token_powers_",
        "pack_bytes_",
        "pack_halves_",
        "lane_scales_",
        "lane_powers_",
        "rows_to_",
        "spmm_tiles_",
        "enter_tiles_",
        "leave_tiles_",
        "spmv_tiles_",
        "prepare_tiles_",
        "pack_panel_",
        "pack_tiles_",
        "lanes_to_tiles_",
        "quads_to_tiles_",
        "tiles_to_lanes_",
        "quantize_panel_",
        "quantize_tiles_",
        "store_",
        "finish_panel_",
        "norm_panel_",
        "quantize_lanes_",
        "rotate_",
        "norm_row_",
        "multiply_row_",
        "attend_",
        "step_cells_",
        "fma_loop_",
        "sum_loop_",
        "bf16_dot_",
        "bf16_tile_loop_",
        "i8_tile_loop_",
        "i8_dot_",
    )
    for path in objects:
        out = subprocess.run(
            [nm, "--defined-only", "--extern-only", "-C", path], capture_output=True, text=True
        )
        for line in out.stdout.splitlines():
            kind, name = line.split(maxsplit=2)[1:]
            if kind == "T":
                assert name.startswith(tuple(f"se::{p}" for p in prefixes)), f"{path.name}: {line}"
            else:  # a template of the project that was not inlined
                target = path.name.removesuffix(".cc.o")
                assert f"se::{target}::" in name.split("(")[0], f"{path.name}: {line}"


def test_more_threads_than_cores_and_python_threads() -> None:
    out = python(
        "import torch, threading, sparse_engine as se\n"
        "torch.set_num_threads(7)\n"
        "w = torch.randn(300, 200) * (torch.rand(300, 200) > .8)\n"
        "packed = se.ops.pack(se.CSR.from_dense(w)); x = torch.randn(70, 200)\n"
        "want = x @ w.T; bad = []\n"
        "def work():\n"
        "    for _ in range(20):\n"
        "        y = se.ops.linear(packed, x)\n"
        "        if not torch.allclose(y, want, atol=1e-3): bad.append(1)\n"
        "ts = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]; print('bad', len(bad))"
    )
    assert out.strip() == "bad 0"


def test_a_forked_child_computes_on_one_thread() -> None:
    """OpenMP's threads do not survive a fork, but one thread works (docs/layers.md)."""
    out = python(
        "import os, signal, torch, sparse_engine as se\n"
        "w = torch.randn(512, 512); p = se.ops.pack(se.CSR.from_dense(w))\n"
        "x = torch.randn(128, 512); y = se.ops.linear(p, x)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(60)\n"
        "    torch.set_num_threads(1)\n"
        "    os._exit(0 if torch.equal(se.ops.linear(p, x), y) else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert out.strip() == "0"
