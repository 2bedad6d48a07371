"""`prune --stream` and `convert --stream`: one module in memory at a time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import ok, refused, run

import sparse_engine.streaming
from sparse_engine.io import load_pretrained


def test_prune_streamed(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--sparsity", "0.5", "--calibration", texts, "--samples", "40", "--stream")
    done = run("prune", model, out, *options)
    assert done.returncode == 0, done.stderr
    assert "12 layers (sparsegpt" in done.stdout
    assert re.search(r"module 1 of 2: .* s, about \d+ s left", done.stderr)
    pruned, _ = load_pretrained(out)
    weight = pruned.encoder.layer[1].output.dense.weight
    assert (weight == 0).float().mean() == 0.5
    ok("convert", out, tmp_path / "package", "--format", "csr", "--verify")


def test_streamed_where_memory_is_short(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_engine.streaming.memory, "available_memory", lambda: 1000)
    options = ("--sparsity", "0.5", "--calibration", "none")
    done = run("prune", model, tmp_path / "a", *options)
    assert "is too large for the memory that is free: it is streamed" in done.stderr
    assert "module 2 of 2" in done.stderr
    done = run("prune", model, tmp_path / "b", *options, "--no-stream")
    assert "module 2 of 2" not in done.stderr
    streamed, whole = (load_pretrained(tmp_path / name)[0] for name in ("a", "b"))
    assert streamed.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(streamed.state_dict()[name]), name


def test_interrupted_and_continued(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_engine.cli import streamed

    out = tmp_path / "out"
    options = ("--stream", "--calibration", "none")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(streamed, "_tell_time", interrupt)
        done = run("prune", model, out, "--sparsity", "0.5", *options)
    assert done.returncode == 130
    assert "out.unfinished holds what is done: the same command continues" in done.stderr
    line = refused(2, "prune", model, out, "--sparsity", "0.6", *options)
    assert "was begun with another sparsity (0.5, now 0.6)" in line
    ok("prune", model, out, "--sparsity", "0.5", *options)


def test_one_line_for_what_cannot_be_streamed(model: Path, tmp_path: Path) -> None:
    options = ("--sparsity", "0.5", "--stream", "--calibration", "none")
    line = refused(2, "prune", model, tmp_path / "out", *options, "--allocator", "lamp")
    assert "allocator lamp compares the scores of all layers in memory" in line
    line = refused(4, "prune", tmp_path / "none", tmp_path / "out", *options)
    assert "none" in line


def test_convert_streamed(model: Path, texts: Path, tmp_path: Path) -> None:
    pruned, out = tmp_path / "pruned", tmp_path / "package"
    ok("prune", model, pruned, "--sparsity", "0.8")
    line = refused(2, "convert", pruned, out, "--stream", "--verify")
    assert "--verify runs the whole model, which is streamed: leave it out" in line
    done = run("convert", pruned, out, "--format", "csr", "--stream")
    assert done.returncode == 0, done.stderr
    assert "12 of 13 layers sparse" in done.stdout
    assert "module 2 of 2" in done.stderr
    ok("verify", out, "--against", pruned)
