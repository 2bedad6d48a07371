"""The command line end to end on a tiny model, and one line with the right exit code for
bad input.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from command_line import WORDS, ok, refused, run

transformers = pytest.importorskip("transformers")


def test_help_of_every_command_answers_a_newcomer() -> None:
    for command in (
        ("prune",),
        ("convert",),
        ("inspect",),
        ("verify",),
        ("info",),
        ("bench", "kernel"),
        ("bench", "model"),
        ("serve",),
        ("demo",),
    ):
        text = ok(*command, "--help")
        assert "Usage: sparse-engine" in text
        if command != ("info",):
            assert "Example" in text


def test_info_names_isa_and_kernels() -> None:
    told = ok("info", SPARSE_ENGINE_ISA="scalar")
    assert "scalar (forced)" in told
    assert "* spmm_strips_f32_scalar" in told
    assert "ISA" in refused(2, "info", SPARSE_ENGINE_ISA="mmx")


def test_info_says_that_tile_registers_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparse_engine import _core
    from sparse_engine.cli.info import info

    for refused_here in (False, True):
        monkeypatch.setattr(_core, "tiles_refused", lambda told=refused_here: told)
        info()
        told = " ".join(capsys.readouterr().out.split())
        assert ("AMX the processor has it" in told) == refused_here


def test_package_runs_inspects_verifies(package: Path, model: Path) -> None:
    assert "csr" in ok("inspect", package)
    found = json.loads(ok("inspect", package, "-o", "json"))
    assert found
    assert "intact" in ok("verify", package)
    assert "cosine" in ok("verify", package, "--against", model.parent / "pruned")
    # Against the model before pruning it must differ, and say so.
    assert "error" in refused(5, "verify", package, "--against", model)


def test_bench_model_prints_both_engines(package: Path) -> None:
    options = ("--seq", "8", "--runs", "1", "--rounds", "1", "-o", "json")
    rows = json.loads(ok("bench", "model", package, *options))
    assert [row["engine"] for row in rows] == ["sparse_engine", "torch"]
    assert all(row["median_ms"] > 0 for row in rows)


def test_bench_kernel_prints_json() -> None:
    sizes = ("-n", 16, "-k", 16, "-m", 2, "--sparsity", "0.5")
    done = run("bench", "kernel", *sizes, "-o", "json", "--rounds", 1)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) == 2


def test_prune_patterns_and_bad_numbers(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments in (
        ("--sparsity", "1.5"),
        ("--sparsity", "-0.1"),
        ("--sparsity", "0.5", "--granularity", "7x"),
        ("--sparsity", "0.5", "--granularity", "4096x4096"),
        ("--sparsity", "0.5", "--criterion", "luck"),
        ("--sparsity", "0.5", "--criterion", "wanda", "--calibration", "none"),
        ("--sparsity", "0.5", "--calibration", tmp_path / "none.txt"),
        ("--sparsity", "0.3", "--granularity", "2:4"),
        ("--sparsity", "0.5", "--threads", "0"),
        ("--sparsity", "0.5", "--threads", "100000"),
    ):
        refused(2, "prune", model, out, *arguments)
        assert not out.exists()
    ok("prune", model, out, "--granularity", "2:4")
    assert list(tmp_path.iterdir()) == [out]


def test_package_can_be_pruned_again(package: Path, texts: Path, tmp_path: Path) -> None:
    told = ok("prune", package, tmp_path / "out", "--sparsity", "0.9", "--calibration", texts)
    assert "query" in told
    long = tmp_path / "long.txt"
    long.write_text(" ".join(WORDS[4:] * 20))
    options = ("--sparsity", "0.9", "--calibration", long, "--max-length", "500")
    ok("prune", package, tmp_path / "clipped", *options)


def test_errors_before_work_starts(package: Path, tmp_path: Path) -> None:
    refused(2, "bench", "kernel", "--plot", tmp_path / "chart.foo")
    refused(2, "bench", "kernel", "--plot", tmp_path / "none" / "chart.png")
    refused(2, "bench", "model", package, "--threads", "0")
    refused(2, "inspect", package, SPARSE_ENGINE_ISA="avx3")
    small = ("-n", 16, "-k", 16, "-m", 2, "--sparsity", "0.001", "--rounds", 1)
    ok("bench", "kernel", *small)


def test_failed_verification_leaves_no_package(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sparse_engine.io as io_room
    from sparse_engine.errors import VerificationError

    def differ(*args: object, **kwargs: object) -> None:
        raise VerificationError("differs")

    monkeypatch.setattr(io_room, "verify", differ)
    refused(5, "convert", model, tmp_path / "out", "--verify")
    assert list(tmp_path.iterdir()) == []


def test_bad_models(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(4, "convert", tmp_path / "nowhere", out)
    no_weights = tmp_path / "no-weights"
    shutil.copytree(model, no_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(3, "convert", no_weights, out)
    torch.save({"a": torch.zeros(2)}, no_weights / "pytorch_model.bin")
    assert "pickle" in refused(3, "convert", no_weights, out)
    nan = tmp_path / "nan"
    shutil.copytree(model, nan)
    broken = transformers.BertModel.from_pretrained(nan)
    broken.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    broken.save_pretrained(nan)
    assert "output.dense" in refused(3, "convert", nan, out)
    assert not out.exists()
    refused(4, "bench", "model", tmp_path / "nowhere")


def test_bad_packages(package: Path, tmp_path: Path) -> None:
    assert "exists" in refused(2, "convert", package, package)
    weights = "sparse_engine.safetensors"
    for name, damage in (
        ("truncated", lambda b: b[:-100]),
        ("flipped", lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:]),
    ):
        copy = tmp_path / name
        shutil.copytree(package, copy)
        (copy / weights).write_bytes(damage((copy / weights).read_bytes()))
        refused(3, "verify", copy)
    unknown = tmp_path / "unknown"
    shutil.copytree(package, unknown)
    text = (unknown / "sparse_engine.json").read_text()
    (unknown / "sparse_engine.json").write_text(text.replace('"csr"', '"coo"'))
    refused(3, "inspect", unknown)


def test_full_disk_leaves_nothing_behind(package: Path, tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: writing fails half-way in the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        told = refused(2, "convert", package, tmp_path / "out", "--format", "csr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "nothing was left behind" in told
    assert list(tmp_path.iterdir()) == []


def test_traceback_shows_the_rest(model: Path, tmp_path: Path) -> None:
    shown = run("prune", model, tmp_path / "a", "--sparsity", "2", "--traceback")
    assert shown.returncode == 2
    assert "Traceback (most recent call last)" in shown.stderr
    assert shown.stderr.splitlines()[-1].startswith("error: sparsity 2")
    again = run("--traceback", "prune", model, tmp_path / "a", "--sparsity", "2")
    assert again.stderr.splitlines()[-1] == shown.stderr.splitlines()[-1]
    assert "Traceback" not in refused(2, "prune", model, tmp_path / "a", "--sparsity", "2")
    assert "--traceback" in ok("--help")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            {"modules.json": [{"type": "x.Transformer", "path": ""}, {"type": "x.Router"}]},
            "module 'Router'",
        ),
        ({"1_Pooling/config.json": {"pooling_mode_middle": True}}, "pooling middle"),
        ({"1_Pooling/config.json": {"pooling_mode": "heaviest"}}, "pooling heaviest"),
        (
            {
                "modules.json": [{"type": "x.Pooling", "path": "2_Pooling"}],
                "2_Pooling/config.json": {"pooling_mode": "mean"},
            },
            "2_Pooling/config.json, packages keep 1_Pooling, 2_Dense and 3_Dense",
        ),
    ],
)
def test_convert_refuses_what_run_would_refuse(
    files: dict[str, object], match: str, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    assert match in refused(4, "convert", folder, tmp_path / "out", "--format", "csr")
    assert list(tmp_path.iterdir()) == [folder]
