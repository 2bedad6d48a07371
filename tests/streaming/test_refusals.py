"""What cannot be streamed is refused in one line, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from sharded import VOCABULARY, save_sharded, tensors_of, token_batches

from sparse_engine.errors import InvalidFileError, UnsupportedModelError, UsageError
from sparse_engine.streaming import memory, must_stream, open_checkpoint, prune_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sharded(tmp_path_factory.mktemp("stream") / "source", "llama")


def refused(source: Path, error: type[Exception], match: str, **options: Any) -> None:
    """The call fails with one line, before or after opening, and nothing is left."""
    given: dict[str, Any] = {"sparsity": 0.5, **options}
    before = sorted(source.parent.iterdir())
    with pytest.raises(error, match=match) as caught:
        prune_checkpoint(open_checkpoint(source), source.parent / "out", **given)
    assert "\n" not in str(caught.value)
    assert sorted(source.parent.iterdir()) == before


def damaged(source: Path, tmp_path: Path, change: Any) -> Path:
    """A copy in which `change` was applied to the tensors of the shard of an up_proj."""
    folder = Path(shutil.copytree(source, tmp_path / "damaged"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shard = folder / index["model.layers.1.mlp.up_proj.weight"]
    tensors = load_file(shard)
    change(tensors, "model.layers.1.mlp.up_proj.weight")
    save_file(tensors, shard, metadata={"format": "pt"})
    return folder


def test_arguments(source: Path) -> None:
    refused(source, UsageError, "allocator lamp compares .* choose uniform", allocator="lamp")
    refused(source, UsageError, "coupled reads .* cannot be streamed", criterion="coupled")
    refused(source, UsageError, "sparsegpt needs calibration inputs", criterion="sparsegpt")
    refused(source, UsageError, "fits no layer", granularity="512x512")
    refused(source, UsageError, "calibration is empty", criterion="wanda", calibration=[])
    wrong = [{"input_ids": torch.tensor([[VOCABULARY]])}]
    refused(source, UsageError, "token id 60", criterion="wanda", calibration=wrong)
    (source.parent / "out").mkdir()
    refused(source, UsageError, "exists: remove it")
    (source.parent / "out").rmdir()


def test_damaged_shards(source: Path, tmp_path: Path) -> None:
    def lose(tensors: dict[str, Any], name: str) -> None:
        del tensors[name]

    def shrink(tensors: dict[str, Any], name: str) -> None:
        tensors[name] = tensors[name][:-1].clone()

    def spoil(tensors: dict[str, Any], name: str) -> None:
        tensors[name][0, 0] = torch.nan

    def to_integers(tensors: dict[str, Any], name: str) -> None:
        tensors[name] = tensors[name].to(torch.int8)

    for change, match in [
        (lose, r"tensor 'model.layers.1.mlp.up_proj.weight' of LlamaForCausalLM is missing"),
        (shrink, "up_proj.weight' is 47x32, other tensors leave 48 units"),
        (spoil, "up_proj.weight' holds NaN or infinity"),
        (to_integers, r"is torch.int8 \[48, 32\]"),
    ]:
        folder = damaged(source, tmp_path, change)
        refused(folder, InvalidFileError, match)
        shutil.rmtree(folder)
    folder = damaged(source, tmp_path, lambda *_: None)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    refused(folder, InvalidFileError, "truncated")
    shard.unlink()
    refused(folder, InvalidFileError, "is missing")


def test_models_that_cannot_be_streamed(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2}
    config = T5Config(vocab_size=VOCABULARY, num_heads=2, decoder_start_token_id=0, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", UnsupportedModelError, "it has 2 stacks of layers, not one")
    albert = AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=16,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        num_hidden_layers=3,
    )
    AlbertModel(albert).save_pretrained(tmp_path / "albert")
    refused(
        tmp_path / "albert",
        UnsupportedModelError,
        "AlbertModel cannot be streamed: the modules of .* do not simply follow each other",
        criterion="wanda",
        calibration=token_batches(),
    )


def test_packages_and_adapters(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "package"))
    (folder / "sparse_engine.json").write_text("{}")
    refused(folder, UnsupportedModelError, "is a package: streaming reads checkpoints")
    (folder / "sparse_engine.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, UnsupportedModelError, "holds an adapter: merge it")


def test_weights_too_large_for_float16(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "source", "llama", torch.float16)
    state = tensors_of(source)
    name = "model.layers.0.mlp.down_proj.weight"
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    shard = source / index[name]
    mine = {key: state[key] for key, file in index.items() if file == shard.name}
    # Least squares adds what the removed weights of two equal inputs did to the kept ones.
    mine[name][:] = 40000.0
    for up in ("up_proj", "gate_proj"):
        key = f"model.layers.0.mlp.{up}.weight"
        other = source / index[key]
        tensors = load_file(other) if other != shard else mine
        tensors[key][1::2] = tensors[key][0::2]
        save_file(tensors, other, metadata={"format": "pt"})
    save_file(mine, shard, metadata={"format": "pt"})
    options = {"criterion": "sparsegpt", "recovery": "least_squares"}
    match = "holds a value too large for float16"
    refused(source, UsageError, match, calibration=token_batches(), **options)


def test_a_full_disk(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    refused(source, UsageError, "has 0 MB free, and pruning takes")


def test_streaming_is_chosen_where_memory_is_short(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 40)
    assert not must_stream(source)
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    assert must_stream(source)
    assert not must_stream(source / "nothing")
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert not must_stream(source)


def test_layouts_of_other_tools_are_read_as_a_whole(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    config = json.loads((folder / "config.json").read_text())
    sparsity = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense"}}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": sparsity}))
    match = "is stored as compressed-tensors dense, which cannot be streamed: give --no-stream"
    refused(folder, UnsupportedModelError, match)
