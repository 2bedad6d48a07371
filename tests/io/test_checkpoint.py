"""Hugging Face folders in and out: what is refused, and that pruned ones are read by anyone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import huggingface_hub
from safetensors.torch import load_file, save_file
from tiny_bert import CONFIG, build, output
from transformers import BertForMaskedLM, BertModel

import sparse_engine as se
from sparse_engine.errors import (
    InvalidFileError,
    SparseEngineError,
    UnsupportedModelError,
)
from sparse_engine.io import load_pretrained, save

torch.set_num_threads(1)


def refused(error: type[SparseEngineError], folder: str | Path, match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_becomes_a_float32_model(dtype: torch.dtype, tmp_path: Path) -> None:
    build().to(dtype).save_pretrained(tmp_path / "hf")
    seen: list[tuple[int, int, str]] = []
    model, folder = load_pretrained(tmp_path / "hf", lambda *step: seen.append(step))
    assert folder == tmp_path / "hf"
    assert isinstance(model, BertModel)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(output(model), output(build().to(dtype).float()))
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_the_class_is_the_one_that_config_names(tmp_path: Path) -> None:
    build(BertForMaskedLM).save_pretrained(tmp_path / "hf")
    model, _ = load_pretrained(tmp_path / "hf")
    assert isinstance(model, BertForMaskedLM)
    assert torch.equal(output(model), output(build(BertForMaskedLM)))


def test_shards(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert (tmp_path / "hf/model.safetensors.index.json").exists()
    model, folder = load_pretrained(tmp_path / "hf")
    assert torch.equal(output(model), output(build()))
    next(folder.glob("model-00002*")).unlink()
    refused(InvalidFileError, folder, r"model-00002.*\.safetensors: is missing")


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "x.bin", ".safetensors"])
def test_shards_lie_in_the_folder(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    index = {"weight_map": {"embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(InvalidFileError, folder, "is no bare safetensors file name")


def test_packages_are_loaded_too(folder: Path, tmp_path: Path) -> None:
    model, _ = load_pretrained(folder)
    model.encoder.layer[0].output.dense.weight[::2] = 0
    assert se.sparsify_(model, "csr").swapped
    save(model, tmp_path / "a", source=folder)
    again, found = load_pretrained(tmp_path / "a")
    assert found == tmp_path / "a"
    assert torch.equal(output(again), output(model))


@pytest.mark.parametrize("text", ["./no/such", "no such", "a/b/c", "", "-/../x", "https://a/b"])
def test_neither_folder_nor_id(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if text:
        refused(UnsupportedModelError, text, "is no folder, and no Hugging Face id")
    else:
        refused(InvalidFileError, text, r"has no config\.json")


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused(UnsupportedModelError, "no-such/model", "nor a Hugging Face id that can be reached")


def test_an_id_is_downloaded_without_code_or_pickle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model, found = load_pretrained("org/tiny-model")
    assert (found, asked["repository"]) == (folder, "org/tiny-model")
    assert torch.equal(output(model), output(build()))
    allowed = (".json", ".safetensors", ".txt", ".model", ".jinja", ".codes", ".spm", "LICENSE")
    assert all(pattern.endswith(allowed) for pattern in asked["patterns"])


def test_a_file_is_no_folder(folder: Path) -> None:
    refused(UnsupportedModelError, folder / "config.json", "is a file: give the folder")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(InvalidFileError, folder, r"has no config\.json")


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}', "{"])
def test_config_is_no_json_object(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    refused(InvalidFileError, folder, r"config\.json")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(InvalidFileError, folder, r"has no weights: expected model\.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickle_is_refused(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(InvalidFileError, folder, f"{name}: pickle is never read, since it can run code")


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    for end in (0, 7, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:end])
        refused(InvalidFileError, folder, r"model\.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_must_be_finite(value: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layer.1.output.dense.weight"
    tensors[name][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    refused(InvalidFileError, folder, f"'{name}' holds NaN or infinity")


def test_no_weight_is_left_random(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(
        InvalidFileError, folder, "'encoder.layer.1.output.dense.weight' of BertModel is missing"
    )


def test_weights_of_another_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["pooler.dense.bias"] = torch.zeros(7)
    save_file(tensors, path, metadata={"format": "pt"})
    refused(InvalidFileError, folder, str(folder))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["EvilModel"]}, "'EvilModel' is none of the bert models"),
        ({"architectures": ["os.system"]}, "is none of the bert models"),
        ({"model_type": "sparse-brain"}, "has no model_type 'sparse-brain'"),
        ({"model_type": None}, "has no model_type"),
        ({"quantization_config": {"bits": 4}}, "models with quantization_config"),
    ],
)
def test_unsupported(changes: dict[str, Any], match: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(UnsupportedModelError, folder, match)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    path = folder / "config.json"
    changes = {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (folder / "evil.py").write_text("raise SystemExit")
    model, _ = load_pretrained(folder)
    assert torch.equal(output(model), output(build()))


def rewrite(folder: Path, edit: Any) -> None:
    """Change names or tensors of a folder's weights."""
    weights = folder / "model.safetensors"
    save_file(edit(load_file(weights)), weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vocab_size": 60}, r"'embeddings\.word_embeddings\.weight' is 50x32 .* makes it 60x32"),
        ({"intermediate_size": 63}, r"intermediate\.dense\.bias' is 64 .* makes it 63 .*6 in all"),
        ({"max_position_embeddings": 8}, r"position_embeddings\.weight' is 40x32 .* it 8x32"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, int], match: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    refused(InvalidFileError, folder, match)


def renamed(old: str, new: str) -> Any:
    return lambda tensors: {name.replace(old, new, 1): t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (renamed("", "net."), r"LayerNorm\.bias' .*missing .*the state dict without 'net\.'"),
        (renamed("", "model.encoder."), r"the state dict without 'model\.encoder\.'"),
        (
            renamed("dense.weight", "dense.parametrizations.weight.original"),
            r"dense\.weight' .*has '.*parametrizations.*': make the weight permanent first",
        ),
        (renamed("query", "q_proj"), r"query\.bias' .*the file has '.*q_proj\.bias' instead \(4"),
        (lambda tensors: {k: t for k, t in tensors.items() if "query" not in k}, r"\(4 in all\)$"),
    ],
)
def test_missing_tensors_are_told_with_what_is_there(edit: Any, match: str, folder: Path) -> None:
    rewrite(folder, edit)
    refused(InvalidFileError, folder, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, far more than 39 tensors"),
        ({"num_labels": 10**8}, "num_labels is 100000000, far more than"),
        ({"max_position_embeddings": 10**8}, r"BertModel has \d+ weights, the files hold 2\d+"),
        ({"vocab_size": 10**9}, r"BertModel has \d+ weights, the files hold"),
        ({"intermediate_size": 10**8}, r"BertModel has \d+ weights, the files hold"),
        ({"num_attention_heads": -1}, "num_attention_heads is -1: give 1 or more"),
        ({"layer_norm_eps": -1.0}, "eps of embeddings.LayerNorm is -1.0: give 0 or more"),
        ({"output_hidden_states": 0.0}, "output_hidden_states is 0.0: give true or false"),
    ],
)
def test_sizes_are_bounded_by_tensors(changes: dict[str, Any], match: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(InvalidFileError, folder, match)


@pytest.mark.parametrize("number", ["NaN", "1e999", "-1e999", "Infinity"])
def test_epsilons_are_numbers(number: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("1e-12", number))
    refused(InvalidFileError, folder, r"is not a number|is not a finite number")


@pytest.mark.parametrize(
    "rope", [{"rope_theta": -3.0}, {"rope_theta": 0.0}, {"rope_type": "linear", "factor": 0.0}]
)
def test_rotary_angles_are_numbers(rope: dict[str, Any], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_key_value_heads": 2} | {k: v for k, v in CONFIG.items() if "max" not in k}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    plain = json.loads(path.read_text())
    plain["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0} | rope
    path.write_text(json.dumps(plain))
    refused(InvalidFileError, tmp_path / "hf", r"inv_freq NaN or infinite|division by zero")


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("Llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of .* 3"),
        ("T5", {"relative_attention_max_distance": 16}, "buckets 32 does not fit .*distance 16"),
        ("T5", {"num_heads": -4}, "num_heads is -4: give 1 or more"),
        ("T5", {"d_kv": 0}, "d_kv is 0: give 1 or more"),
        ("T5", {"relative_attention_max_distance": -1}, "buckets 32 does not fit .*distance -1"),
        ("T5", {"relative_attention_num_buckets": 1}, "buckets 1 does not fit .*distance 128"),
    ],
)
def test_sizes_that_no_tensor_has(
    name: str, changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    import transformers

    own = {"d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 4, "vocab_size": 50}
    sizes: dict[str, Any] = {"T5": own, "Llama": CONFIG}[name]
    kind, cls = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}Model")
    cls(kind(**sizes)).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(InvalidFileError, tmp_path / "hf", match)
