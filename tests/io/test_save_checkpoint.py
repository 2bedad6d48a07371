"""save_checkpoint writes pruned models that any Hugging Face tool reads."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file
from tiny_bert import build, output
from transformers import AutoModel, BertForMaskedLM

import sparse_engine as se
from sparse_engine.errors import (
    SparseEngineError,
    UsageError,
)
from sparse_engine.io import load_pretrained, save_checkpoint

torch.set_num_threads(1)


def test_save_checkpoint_is_read_by_any_tool(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "evil.py").write_text("raise SystemExit")
    config = (folder / "config.json").read_text().replace("{", "{ ", 1)
    (folder / "config.json").write_text(config)
    model, _ = load_pretrained(folder)
    model.encoder.layer[0].output.dense.weight[::2] = 0
    seen: list[str] = []
    told = {"sparsity": 0.5}
    out = save_checkpoint(model, tmp_path / "out", folder, told, lambda *s: seen.append(s[2]))
    names = sorted(path.name for path in out.iterdir())
    assert names == ["config.json", "model.safetensors", "pruning.json", "vocab.txt"]
    assert (out / "config.json").read_text() == config
    assert json.loads((out / "pruning.json").read_text()) == told
    assert torch.equal(output(AutoModel.from_pretrained(out)), output(model))
    assert torch.equal(output(load_pretrained(out)[0]), output(model))
    assert seen
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]  # whoever reads one reads both
    save_checkpoint(model, tmp_path / "again", folder, told)
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_save_checkpoint_keeps_ties(tmp_path: Path) -> None:
    build(BertForMaskedLM).save_pretrained(tmp_path / "hf")
    model, folder = load_pretrained(tmp_path / "hf")
    out = save_checkpoint(model, tmp_path / "out", folder, {})
    again: Any = load_pretrained(out)[0]
    assert torch.equal(output(again), output(model))
    embedding = again.bert.embeddings.word_embeddings
    assert again.cls.predictions.decoder.weight is embedding.weight


def test_save_checkpoint_refuses(folder: Path, tmp_path: Path) -> None:
    model, _ = load_pretrained(folder)
    with pytest.raises(UsageError, match="exists: remove it"):
        save_checkpoint(model, folder, folder, {})
    with pytest.raises(UsageError, match="pruning is not plain JSON"):
        save_checkpoint(model, tmp_path / "out", folder, {"x": object()})
    with pytest.raises(UsageError, match="is not a transformers model"):
        save_checkpoint(torch.nn.Linear(2, 2), tmp_path / "out", folder, {})
    model.encoder.layer[0].output.dense.weight[::2] = 0
    assert se.sparsify_(model, "csr").swapped
    with pytest.raises(UsageError, match="holds sparse layers: densify_"):
        save_checkpoint(model, tmp_path / "out", folder, {})
    model, _ = load_pretrained(folder)
    with pytest.raises(UsageError, match="is not a folder"):
        save_checkpoint(model, tmp_path / "out", tmp_path / "none", {})
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_save_checkpoint_on_a_full_disk(folder: Path, tmp_path: Path) -> None:
    model, _ = load_pretrained(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SparseEngineError, match=r"cannot write .*nothing was left behind"):
            save_checkpoint(model, tmp_path / "out", folder, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    build(BertForMaskedLM).to(dtype).save_pretrained(source)
    model, folder = load_pretrained(source)
    assert model.dtype == torch.float32
    out = save_checkpoint(model, tmp_path / "out", folder, {})
    before, after = (load_file(path / "model.safetensors") for path in (source, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)  # dtypes too
    assert {tensor.dtype for tensor in after.values()} == {dtype}


def test_weights_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    build().half().save_pretrained(tmp_path / "hf")
    model, folder = load_pretrained(tmp_path / "hf")
    model.encoder.layer[0].output.dense.weight[0, 0] = 7e4
    with pytest.raises(UsageError, match="weight holds a value too large for float16"):
        save_checkpoint(model, tmp_path / "out", folder, {})
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
