"""A streamed conversion makes the package of a conversion in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from sharded import MODELS, VOCABULARY, save_sharded

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UnsupportedModelError, UsageError
from sparse_engine.io import load, load_pretrained, save, verify
from sparse_engine.io.package import open_package
from sparse_engine.streaming import (
    convert_checkpoint,
    open_checkpoint,
    prune_checkpoint,
    unfinished,
)
from sparse_engine.streaming.plan import check_unshared, find_streamed

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=MODELS)
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned checkpoint in bfloat16 shards."""
    folder = tmp_path_factory.mktemp("convert")
    source = save_sharded(folder / "source", request.param, torch.bfloat16)
    prune_checkpoint(open_checkpoint(source), folder / "pruned", 0.75, "4x1")
    return folder / "pruned"


def in_memory(source: Path, out: Path, config: Any) -> se.SparsifyReport:
    model, folder = load_pretrained(source)
    outside = {"lm_head", "pooler.dense"}
    report = se.sparsify_(model, config, filter_fn=lambda _, name: name not in outside)
    save(model, out, report=report, source=folder)
    return report


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("csr", "float32"), ("csr", "int8"), ("bsr:4x1", "bfloat16"), ("bitmask", "float32")],
)
def test_as_in_memory(format: str, dtype: str, pruned: Path, tmp_path: Path) -> None:
    config = se.SparseConfig(format=format, dtype=dtype)
    expected = in_memory(pruned, tmp_path / "memory", config)
    report = convert_checkpoint(open_checkpoint(pruned), tmp_path / "streamed", config)
    before, after = (open_package(tmp_path / name) for name in ("memory", "streamed"))
    assert set(before.tensors) == set(after.tensors)
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name]), name
        assert tensor.dtype == after.tensors[name].dtype, name
    layers, aliases = (
        {entry.name: entry for entry in package.manifest.layers} for package in (before, after)
    )
    assert layers == aliases
    for field in ("architecture", "source", "files", "recipe", "skipped"):
        assert getattr(before.manifest, field) == getattr(after.manifest, field), field
    assert {e.name: e.aliases for e in before.manifest.tensors} == {
        e.name: e.aliases for e in after.manifest.tensors
    }
    assert {c.name: c.format for c in before.manifest.choices} == {
        c.name: c.format for c in after.manifest.choices
    }
    assert (report.zeros, report.skipped) == (expected.zeros, expected.skipped)
    assert not unfinished(tmp_path / "streamed").exists()
    ids = torch.arange(12).reshape(2, 6) % VOCABULARY
    with torch.inference_mode():
        outputs = [load(tmp_path / name)(ids)[0] for name in ("memory", "streamed")]
    assert torch.equal(*outputs)
    assert verify(tmp_path / "streamed", against=pruned)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    source = save_sharded(folder / "source", "llama")
    prune_checkpoint(open_checkpoint(source), folder / "pruned", 0.75)
    return folder / "pruned"


def interrupt(done: int, *_: object) -> None:
    if done == 2:
        raise KeyboardInterrupt


def test_interrupted_and_continued(llama: Path, tmp_path: Path) -> None:
    convert_checkpoint(open_checkpoint(llama), tmp_path / "whole", "csr")
    out, seen = tmp_path / "out", list[int]()
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(open_checkpoint(llama), out, "csr", on_module=interrupt)
    assert not out.exists()
    with pytest.raises(UsageError, match=r"another format \(csr, now bitmask\)"):
        convert_checkpoint(open_checkpoint(llama), out, "bitmask")
    report = convert_checkpoint(
        open_checkpoint(llama), out, "csr", on_module=lambda done, *_: seen.append(done)
    )
    assert seen == [3]
    assert len(report.swapped) == 21
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_damaged_part_is_refused(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(open_checkpoint(llama), out, "csr", on_module=interrupt)
    weights = unfinished(out) / "states" / "0" / "sparse_engine.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidFileError, match="truncated"):
        convert_checkpoint(open_checkpoint(llama), out, "csr")


def test_models_without_a_stack_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ModuleDict cannot be streamed: it has no"):
        find_streamed(torch.nn.ModuleDict({"head": torch.nn.Linear(4, 4)}))
    shared = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleList([torch.nn.ModuleDict({"a": shared}) for _ in range(2)])
    with pytest.raises(UnsupportedModelError, match=r"0\.a\.weight is shared with another module"):
        check_unshared(model, find_streamed(model))
