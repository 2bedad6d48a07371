"""Hostile config.json files with right hashes: no code, no downloads, no memory."""

from __future__ import annotations

import builtins
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from tiny_bert import build

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, SparseEngineError
from sparse_engine.io import bounds, load, save

torch.set_num_threads(1)


def bert() -> Any:
    model = build().requires_grad_(False)
    model.encoder.layer[0].output.dense.weight[::2] = 0
    assert se.sparsify_(model, "csr").swapped
    return model


def first_output(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(torch.arange(18).reshape(2, 9))[0]


def edit_config(folder: Path, architecture: str | None = None, **changes: Any) -> None:
    """Change config.json and make the manifest agree, as someone who means harm would."""
    config = json.loads((folder / "config.json").read_bytes())
    data = json.dumps({**config, **changes}).encode()
    (folder / "config.json").write_bytes(data)
    manifest = json.loads((folder / "sparse_engine.json").read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    entry = next(entry for entry in manifest["files"] if entry["name"] == "config.json")
    entry.update(bytes=len(data), sha256=digest)
    manifest["sha256"] = ""
    manifest["architecture"] = architecture or manifest["architecture"]
    text = json.dumps(manifest, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    text = text.replace('"sha256": ""', f'"sha256": "{digest}"', 1)
    (folder / "sparse_engine.json").write_text(text)


@pytest.mark.parametrize(
    ("architecture", "changes", "match"),
    [
        ("PreTrainedModel", {}, "'PreTrainedModel' is none of the bert models"),
        ("GPT2Model", {}, "'GPT2Model' is none of the bert models"),
        ("pipeline", {}, "'pipeline' is none of the bert models"),
        (None, {"model_type": "gpt2"}, "'BertModel' is none of the gpt2 models"),
        (None, {"model_type": "os.path"}, "has no model_type 'os.path'"),
        (None, {"model_type": ["bert"]}, "has no model_type"),
        (None, {"quantization_config": {"quant_method": "x"}}, "models with quantization_config"),
        (None, {"vocab_size": 10**12}, "the model has"),
        (None, {"hidden_size": 10**12}, "overflow|the model has"),
        (None, {"hidden_size": -32}, r"config\.json"),
        (None, {"hidden_size": "32"}, r"config\.json"),
        (None, {"num_attention_heads": 0}, r"config\.json"),
        (None, {"num_hidden_layers": 3}, "of the model is missing"),
        (None, {"num_hidden_layers": 10**9}, "is 1000000000, far more than 43 tensors"),
        (None, {"num_labels": 10**9}, "num_labels is 1000000000, far more than"),
        (None, {"num_local_experts": 10**9}, "num_local_experts is 1000000000, at most 4096"),
        (None, {"layer_norm_eps": -1.0}, "eps of embeddings.LayerNorm is -1.0: give 0 or more"),
        (None, {"max_position_embeddings": 10**15}, "the model has"),
        (None, {"x": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}, "nested more than 16 deep"),
    ],
)
def test_hostile_configs(
    architecture: str | None, changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    save(bert(), tmp_path / "a")
    edit_config(tmp_path / "a", architecture, **changes)
    with pytest.raises(InvalidFileError, match=match) as caught:
        load(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_buffers_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(bert(), tmp_path / "a")
    monkeypatch.setattr(bounds, "MAX_BUFFER_BYTES", 639)  # position and token type ids need 640
    with pytest.raises(InvalidFileError, match=r"buffers of 640 bytes, at most 639"):
        load(tmp_path / "a")
    monkeypatch.setattr(bounds, "MAX_BUFFER_BYTES", 640)
    load(tmp_path / "a")


def test_names_of_code_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(bert(), tmp_path / "a")
    edit_config(
        tmp_path / "a",
        auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
        attn_implementation="evil/kernels",
        _attn_implementation="evil/kernels",
        custom_pipelines={"x": {"impl": "evil.Pipeline"}},
    )
    (tmp_path / "a/evil.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path / "a")
    loaded: Any = load(tmp_path / "a")
    assert torch.equal(first_output(loaded), first_output(bert()))
    assert "evil" not in sys.modules


def test_config_json_is_checked(tmp_path: Path) -> None:
    save(bert(), tmp_path / "a")
    path = tmp_path / "a/config.json"
    text = path.read_text()
    path.write_text(text.replace("1e-12", "1e-02"))
    with pytest.raises(InvalidFileError, match=r"config\.json: is not the file that was packed"):
        load(tmp_path / "a")
    path.unlink()
    with pytest.raises(InvalidFileError, match=r"config\.json: is missing"):
        load(tmp_path / "a")


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(bert(), tmp_path / "a")
    actual = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SparseEngineError, match=r"pip install 'sparse-engine\[hf\]'"):
        load(tmp_path / "a")
