"""bench/gpu.py on Triton's interpreter: checks, rows and refusals; no test looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from time import time
from typing import Any

import pytest
import torch

from sparse_engine.errors import SparseEngineError

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script that it runs

import gpu_points  # noqa: E402
import gpu_worker  # noqa: E402
from gpu_checks import checks as all_checks  # noqa: E402
from gpu_checks import in_tolerances  # noqa: E402
from gpu_weights import Setting, bare_bytes, pack_as, random_weight  # noqa: E402

KERNELS = {
    "linear_bsr_kernel",
    "linear_bsr_split_kernel",
    "linear_bsr_tma_kernel",
    "linear_ell_kernel",
    "expand_ell_kernel",
    "linear_nm_kernel",
    "expand_nm_kernel",
    "recurrent_step_kernel",
}
FIGURES = (
    "time_us dense_us ratio target gbytes_per_second bandwidth_share weight_bytes overhead "
    "max_rel_err tflops torch_sparse_us device torch triton measured note problem kernel against"
).split()


def run_script(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env={**keep, **environment}, capture_output=True, text=True)


def point_of(line: Any) -> tuple[Any, ...]:
    names = ("op", "shape", "tokens", "format", "dtype", "sparsity", "against", "target")
    return tuple(line[name] for name in names)


def test_every_kernel_is_checked_and_every_row_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    done = run_script("--tiny", "--out", str(out), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert not first["conditions"]["measured"]
    checks = [line["check"] for line in lines if "check" in line]
    assert len(checks) == len(all_checks(tiny=True))
    assert {check["result"] for check in checks} == {"ok"}
    assert {name for check in checks for name in check["kernels"].split(", ")} == KERNELS
    assert len({check["check"] for check in checks}) == len(checks)

    rows = [line for line in lines if "check" not in line]
    expected = [vars(point.row()) for point in gpu_points.points(tiny=True)]
    assert [point_of(row) for row in rows] == [point_of(row) for row in expected]
    assert len({point_of(row) for row in rows}) == len(rows)
    for row in rows:
        assert set(FIGURES) <= set(row)
        assert row["note"] == "interpreter: not a measurement"
        assert row["time_us"] > 0
        assert row["overhead"] >= 1
        # torch has no blocks of bfloat16 on CPUs; whatever else goes wrong is ours.
        assert row["problem"].startswith("torch.sparse: ") or not row["problem"]
        assert row["ratio"] is not None or row["problem"]
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) == 2 * 2 + len(checks) + len(rows)
    assert done.stdout.splitlines()[-1] == "interpreter: not a measurement"


def test_some_rows(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    options = ("--tiny", "--skip-checks", "--rounds", "1", "--only", "NM:2:4")
    done = run_script(*options, "--out", str(out), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    first, row = [json.loads(line) for line in out.read_text().splitlines()]
    assert set(first) == {"conditions"}
    assert (row["format"], row["kernel"]) == ("nm:2:4", "linear_nm_kernel")


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ("--tiny --only abacus", {"TRITON_INTERPRET": "1"}, "no row has that"),
        ("--tiny --rounds 0", {"TRITON_INTERPRET": "1"}, "--rounds must be 1"),
        ("", {"TRITON_INTERPRET": "1"}, "add --tiny"),
        pytest.param(
            "",
            {},
            "no GPU is here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there"),
        ),
    ],
)
def test_refusals(options: str, environment: dict[str, str], message: str) -> None:
    done = run_script(*options.split(), **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


WORKER = """
import os, sys, time
print("ready")
for job in range(int(sys.argv[sys.argv.index("--worker") + 1]), 6):
    if job == 1:
        print("bus error", file=sys.stderr)
        sys.stdout.flush()
        os._exit(7)
    if job == 3:
        time.sleep(60)
    print("some library talks")
    print('{"job": %d}' % job, flush=True)
    if job == 4:
        os._exit(17)
"""


def test_a_job_that_breaks_or_hangs_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_worker, "PATIENCE", 1)
    monkeypatch.setattr(gpu_worker, "LAST_PATIENCE", 1)
    answers = list(gpu_worker.answers([sys.executable, "-c", WORKER], 6, time() + 100))
    problems = {1: "ended the process with 7: bus error", 3: "exceeded its time"}
    expected = [{"problem": problems[job]} if job in problems else {"job": job} for job in range(6)]
    assert answers == expected
    late = list(gpu_worker.answers(["no such program"], 2, time() - 1))
    assert [answer["problem"] for answer in late] == ["not run: time was up"] * 2
    with pytest.raises(SparseEngineError, match="does not start, it ended with 3"):
        list(gpu_worker.answers([sys.executable, "-c", "raise SystemExit(3)"], 1, time() + 100))


def test_a_peer_that_fails_loses_only_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a call may fail at once, or only when it is captured."""
    captured: list[list[str]] = []

    def timer(calls: dict[str, Any], device: torch.device, rounds: int) -> dict[str, float]:
        captured.append(list(calls))
        if "dense" in calls:
            raise RuntimeError("first line\nmore\nnot while capturing")
        return dict.fromkeys(calls, 1.0)

    def broken() -> None:
        raise NotImplementedError("no such blocks")

    monkeypatch.setattr(gpu_points, "time_on_gpu", timer)
    monkeypatch.setattr(gpu_points, "launched", lambda call, at: 7.0)
    at = Setting(torch.device("cuda"), 1, True)
    calls = {"ours": lambda: "result", "dense": lambda: None, "torch.sparse": broken}
    y, times, remarks = gpu_points.in_turn(calls, at)
    assert y == "result"
    assert captured == [["ours", "dense"], ["ours"]]
    assert times == {"ours": 1.0, "dense": 7.0}
    assert remarks == [
        "torch.sparse: NotImplementedError: no such blocks",
        "dense launched from Python, in no graph: RuntimeError: first line ... not while capturing",
    ]
    with pytest.raises(NotImplementedError):
        gpu_points.in_turn({"ours": broken}, at)


def test_wrong_results_are_seen() -> None:
    y = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    size = torch.ones(2).double()
    assert in_tolerances(y, y.double() + 0.004, size) <= 1
    assert in_tolerances(y, y.double() + 0.1, size) > 1
    assert in_tolerances(y * torch.nan, y.double(), size) == float("inf")


def test_patterns_have_the_share_of_zeros_that_was_asked_for() -> None:
    at = Setting(torch.device("cpu"), 1, True)
    for spec, share in (("csr", 0.8), ("bsr:16x8", 0.9), ("nm:2:4", 0.5)):
        weight = random_weight(160, 80, spec, share, at, torch.float32)
        assert float((weight == 0).float().mean()) == pytest.approx(share)
        packed = pack_as(spec, weight, torch.float32)
        assert torch.equal(packed.to_dense(), weight)
        assert bare_bytes(packed) <= packed.nbytes
