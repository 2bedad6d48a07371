"""inspect and convert on checkpoints that other tools pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import ok, refused

pytest.importorskip("transformers")

from foreign_layouts import compress, edit_config, pruned, sparsity_config, write
from tiny_bert import build

torch.set_num_threads(1)


def test_two_of_four_of_compressed_tensors(tmp_path: Path) -> None:
    model = pruned(two_of_four=True)
    config = {"quantization_config": sparsity_config("sparse-24-bitmask")}
    folder = write(tmp_path / "hf", model, config, compress(model.state_dict(), True, False))
    told = ok("inspect", folder)
    assert "stored as compressed-tensors sparse-24-bitmask" in told
    assert "13 linear layers: 2:4 in 12, dense in 1" in told
    package = tmp_path / "package"
    ok("convert", folder, package, "--format", "nm:2:4", "--verify")
    assert ok("inspect", package).count("nm:2:4") == 12


def test_blocks_of_a_plain_checkpoint(tmp_path: Path) -> None:
    model = build().requires_grad_(False)
    for layer in model.encoder.layer:
        layer.output.dense.weight.view(8, 4, 64)[:, :, ::3] = 0
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/recipe.yaml").write_text("x: 1")
    found = json.loads(ok("inspect", tmp_path / "hf", "-o", "json"))
    assert found["title"] == f"{tmp_path / 'hf'}: BertModel; recipe: recipe.yaml"
    blocks = {row["name"]: row["block"] for row in found["layers"]}
    assert blocks["encoder.layer.1.output.dense"] == "columns"
    assert blocks["pooler.dense"] == "dense"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    assert "sparse_engine.json" in refused(3, "inspect", tmp_path)
    folder = tmp_path / "hf"
    build().save_pretrained(folder)
    edit_config(folder, lambda c: c.update(quantization_config={"quant_method": "gptq"}))
    assert "models with quantization_config" in refused(4, "inspect", folder)
