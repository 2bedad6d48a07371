"""Folders with adapters: merged, or refused in a line; never left out in silence."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import sparse_engine as se
from sparse_engine.cli import main
from sparse_engine.errors import InvalidFileError, UnsupportedModelError
from sparse_engine.io import load_pretrained

peft = pytest.importorskip("peft")
IDS = torch.arange(10).view(2, 5)
BASE = "somebody/tiny-bert"


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        num_labels=3,
        initializer_range=0.2,
    )
    return transformers.BertForSequenceClassification(config).eval()


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS)[0]


def exit_code(*arguments: object) -> int:
    """Of the command line, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sparse-engine", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def config(**given: Any) -> Any:
    options: dict[str, Any] = {
        "r": 4,
        "target_modules": ["query", "value", "dense"],
        "init_lora_weights": False,
    }
    return peft.LoraConfig(**{**options, **given})


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "for a task": {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]},
    "own head": {"modules_to_save": ["classifier"]},
    "ranks": {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}, "use_rslora": True},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layer"},
    "biases": {"bias": "lora_only"},
    "directions": {"use_dora": True},
}


def make(folder: Path, **given: Any) -> Tensor:
    """Base weights and an adapter in a folder; returns what the adapted model gives."""
    bert().save_pretrained(folder)
    model = peft.get_peft_model(bert(), config(**given)).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.2 * noise if "lora" in name else noise
    expected = logits(model)
    model.peft_config["default"].base_model_name_or_path = BASE
    model.save_pretrained(folder)
    return expected


def edit(folder: Path, **given: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | given))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged(kind: str, tmp_path: Path) -> None:
    expected = make(tmp_path, **KINDS[kind])
    assert (expected - logits(bert())).abs().max() > 0.05
    model, _ = load_pretrained(tmp_path)
    assert type(model) is type(bert())
    assert model.state_dict().keys() == bert().state_dict().keys()
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_merged_models_become_packages_that_are_verified(tmp_path: Path) -> None:
    source, package = tmp_path / "source", tmp_path / "package"
    expected = make(source)
    model, _ = load_pretrained(source)
    se.prune(model, 0.5)
    pruned = logits(model)
    assert "2 bert layers run natively" in se.sparsify_(model, "csr").native
    se.save(model, package, source=source)
    assert torch.allclose(logits(se.load(package)), pruned, atol=1e-5)
    assert not list(package.glob("adapter*"))
    again = tmp_path / "again"
    assert exit_code("convert", source, again, "--format", "csr", "--verify") == 0
    assert torch.allclose(logits(se.load(again)), expected, atol=1e-5)


def test_pruned_checkpoints_hold_no_adapter(tmp_path: Path) -> None:
    source, pruned = tmp_path / "source", tmp_path / "pruned"
    make(source)
    options = ("--sparsity", "0.5", "--calibration", "none")
    assert exit_code("prune", source, pruned, *options) == 0
    assert not list(pruned.glob("adapter*"))
    model, _ = load_pretrained(source)
    se.prune(model, 0.5)
    assert torch.allclose(logits(load_pretrained(pruned)[0]), logits(model), atol=1e-5)


def test_without_peft_adapters_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnsupportedModelError, match=r"has a LoRA adapter .* pip install peft"):
        load_pretrained(tmp_path)


def test_an_adapter_alone_says_what_it_is(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(
            UnsupportedModelError, match=f"is a LORA adapter for {BASE}, not a model"
        ):
            load_pretrained(tmp_path)
        (tmp_path / "config.json").unlink(missing_ok=True)
    assert exit_code("convert", tmp_path, tmp_path / "package") == 4


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, peft_type="IA3")
    with pytest.raises(UnsupportedModelError, match="an IA3 adapter is not merged here"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("option", ["megatron_config", "layer_replication"])
def test_options_that_would_import_or_rebuild_are_refused(option: str, tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, **{option: {"a": 1}, "megatron_core": "antigravity"})
    with pytest.raises(UnsupportedModelError, match=option):
        load_pretrained(tmp_path)
    assert "antigravity" not in sys.modules


def test_half_adapters_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    both = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    for i, match in enumerate(("no adapter_config.json", "no adapter_model.safetensors")):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name in ("config.json", "model.safetensors", both[1 - i].name):
            shutil.copy(tmp_path / name, folder / name)
        with pytest.raises(InvalidFileError, match=match):
            load_pretrained(folder)


def test_adapters_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    good = load_file(path)
    name = next(iter(good))
    bad = {
        "another shape": good | {name: torch.zeros(3, 5)},
        "another name": good | {"base_model.model.nowhere.lora_A.weight": torch.zeros(2, 2)},
        "one missing": {key: tensor for key, tensor in good.items() if key != name},
    }
    for tensors in bad.values():
        save_file(tensors, path)
        with pytest.raises(InvalidFileError, match="the adapter does not fit") as caught:
            load_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
    save_file(good, path)
    edit(tmp_path, target_modules=["nothing"])
    with pytest.raises(InvalidFileError, match="the adapter does not fit"):
        load_pretrained(tmp_path)


def test_values_of_adapters_are_checked(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    state[next(iter(state))].fill_(float("nan"))
    save_file(state, path)
    with pytest.raises(InvalidFileError):
        load_pretrained(tmp_path)
