"""Commands on a model from which heads and units were removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ok, refused

pytest.importorskip("transformers")

import sparse_engine as se
from sparse_engine.io import load_pretrained, save_checkpoint
from sparse_engine.structures import find_sites, resize_


@pytest.fixture(scope="module")
def cut(model: Path) -> Path:
    """A checkpoint with one head in the second layer, and 40 and 30 units."""
    loaded, folder = load_pretrained(model)
    sites = find_sites(loaded, ("head", "unit"))
    counts = (2, 40, 1, 30)
    kept = {site.name: torch.arange(n) for site, n in zip(sites, counts, strict=True)}
    resize_(loaded, kept, sites)
    return save_checkpoint(loaded, model.parent / "cut", folder, {})


@pytest.fixture(scope="module")
def packed(cut: Path, texts: Path) -> Path:
    out, zeros = cut.parent / "packed", cut.parent / "zeros"
    ok("prune", cut, zeros, "--sparsity", "0.5", "--calibration", texts, "--samples", "16")
    assert "max relative error" in ok("convert", zeros, out, "--format", "csr", "--verify")
    return out


def test_inspect_and_verify(packed: Path, cut: Path) -> None:
    told = ok("inspect", packed)
    assert "heads: 1 of 2 remain where some were removed" in told
    assert "in each of 1 places" not in told
    units = "units: 70 of 128 remain where some were removed, 30 to 40 in each of 2 places"
    assert units in told
    found = json.loads(ok("inspect", packed, "-o", "json"))
    assert [(site["kept"], site["groups"]) for site in found["removed"]] == [
        (40, 64),
        (1, 2),
        (30, 64),
    ]
    told = ok("inspect", cut)
    assert "intermediate.dense" in told
    assert "heads: 1 of 2 remain" in told
    assert "units: 70 of 128 remain" in told
    found = json.loads(ok("inspect", cut, "-o", "json"))
    assert {site["kind"] for site in found["removed"]} == {"head", "unit"}
    assert "max relative error" in ok("verify", packed, "--against", cut.parent / "zeros")


def test_inspect_fewer_layers(model: Path, tmp_path: Path) -> None:
    options = ("--granularity", "layer(count=1)", "--calibration", "none")
    ok("prune", model, tmp_path / "short", *options)
    assert "layers: 1 of 2 remain" in ok("inspect", tmp_path / "short")
    record = tmp_path / "short" / "pruning.json"
    record.write_text("{")
    told = refused(3, "inspect", tmp_path / "short")
    assert told.startswith(f"error: {record} is not valid JSON")


def test_run(packed: Path) -> None:
    from sparse_engine.tasks import open_task

    text = "the cat sat on a mat"
    (expected,) = open_task(load_pretrained(packed.parent / "zeros")[0], packed).embed([text])
    printed = torch.tensor([float(x) for x in ok("run", packed, "--text", text).split()])
    torch.testing.assert_close(printed, expected, atol=1e-4, rtol=1e-4)


def test_bench(packed: Path) -> None:
    arguments = ("--runs", "1", "--rounds", "1", "--seq", "4", "--threads", "1")
    assert "torch" in ok("bench", "model", packed, *arguments)


def test_streamed(cut: Path, tmp_path: Path) -> None:
    """Streaming reads cut checkpoints as the other commands do."""
    options = ("--sparsity", "0.5", "--calibration", "none")
    for name, stream in (("whole", "--no-stream"), ("streamed", "--stream")):
        ok("prune", cut, tmp_path / name, *options, stream)
        package = tmp_path / f"{name} packed"
        ok("convert", tmp_path / name, package, "--format", "csr", stream)
    found: Any = load_pretrained(tmp_path / "streamed")[0]
    expected: Any = load_pretrained(tmp_path / "whole")[0]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    ids = torch.arange(4)[None]
    packed: Any = se.load(tmp_path / "streamed packed")
    torch.testing.assert_close(packed(ids)[0], expected(ids)[0])


def test_export(packed: Path, cut: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    told = ok("export", cut, tmp_path / "plain")
    assert "intermediate_size 64 -> 40" in told
    assert "zeros in place of 1 head and 10 units" in told
    ids = torch.arange(4)[None]
    expected: Any = load_pretrained(cut)[0]
    plain = AutoModel.from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(plain(ids)[0], expected(ids)[0])
    assert (tmp_path / "plain/tokenizer.json").is_file()
    ok("export", packed, tmp_path / "from-package")
    assert "exists" in refused(2, "export", cut, tmp_path / "plain")
