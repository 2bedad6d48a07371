"""The files beside the weights: which of them are read, and how other tools read a package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers
from task_models import folder

import sparse_engine as se
from sparse_engine.errors import InvalidFileError
from sparse_engine.io.model_files import ModelFiles, read_companions
from sparse_engine.tasks import open_task


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    source = folder(root / "dense", "BertModel")
    model, _ = se.io.load_pretrained(source)
    se.sparsify_(model, "csr")
    return se.save(model, root / "packed", source=source)


@pytest.fixture
def package(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "p"))


def refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(InvalidFileError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", ["AutoModel", "BertModel", "AutoModelForSequenceClassification"])
def test_other_tools_do_not_take_a_package_for_a_checkpoint(cls: str, package: Path) -> None:
    assert not list(package.glob("model*"))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        getattr(transformers, cls).from_pretrained(package)


def test_packages_with_the_old_name_are_read(package: Path) -> None:
    before = open_task(se.load(package), package).embed(["the cat sat"])
    (package / "sparse_engine.safetensors").rename(package / "model.safetensors")
    assert open_task(se.load(package), package).embed(["the cat sat"]).equal(before)
    se.io.verify(package)
    se.io.inspect(package)
    shutil.copy(package / "model.safetensors", package / "sparse_engine.safetensors")
    refused(lambda: se.load(package), r"model\.safetensors: is not among the files")


UNLISTED = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "generation_config.json",
)


def place(path: Path, kind: str, content: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if kind == "file":
        path.write_text("{}")
    elif kind == "link":
        path.symlink_to(content)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["file", "link", "device", "fifo"])
@pytest.mark.parametrize("name", UNLISTED)
def test_what_the_manifest_does_not_list_is_refused(name: str, kind: str, package: Path) -> None:
    model = se.load(package)
    place(package / name, kind, package / "config.json")
    for call in (se.load, se.io.verify, se.io.inspect):
        refused(lambda call=call: call(package), f"{name}: is not among the files of sparse_eng")
    refused(lambda: ModelFiles(package).read(name), f"{name}: is not among the files")
    if name not in ("tokenizer_config.json", "generation_config.json"):  # which no task reads
        refused(lambda: open_task(model, package), f"{name}: is not among the files")


@pytest.mark.parametrize("kind", ["file", "link", "device", "fifo"])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_tasks_read_what_was_packed(name: str, kind: str, package: Path, packed: Path) -> None:
    model = se.load(package)
    (package / name).unlink()
    place(package / name, kind, packed / name)
    told = {"file": "is not the file that was packed", "fifo": "is not a regular file"}
    refused(lambda: open_task(model, package), f"{name}: {told.get(kind, 'is a link')}")


def test_checkpoints_may_hold_links_but_nothing_that_never_ends(
    packed: Path, tmp_path: Path
) -> None:
    folder = packed.parent / "dense"
    cached = tmp_path / "cached"
    cached.mkdir()
    for path in folder.iterdir():
        (cached / path.name).symlink_to(path)
    assert read_companions(cached) == read_companions(folder)
    model, _ = se.io.load_pretrained(cached)
    assert open_task(model, cached).embed(["the cat"]).shape == (1, 24)
    for kind in ("device", "fifo"):
        place(cached / "modules.json", kind, folder)
        refused(lambda: open_task(model, cached), r"modules\.json: is not a regular file")
        refused(lambda: read_companions(cached), r"modules\.json: is not a regular file")
        (cached / "modules.json").unlink()


def test_files_are_bounded(packed: Path, tmp_path: Path) -> None:
    with open(tmp_path / "vocab.txt", "wb") as file:
        file.truncate((64 << 20) + 1)
    refused(lambda: ModelFiles(tmp_path).read("vocab.txt"), r"67108865 bytes, at most 67108864")
    refused(lambda: read_companions(tmp_path), r"67108865 bytes, at most 67108864")


def test_texts_for_verify_use_the_packed_tokenizer(package: Path) -> None:
    model = se.densify_(se.load(package))
    report = se.io.verify(package, against=model, samples=["the cat sat on a mat"])
    assert report.samples == 1


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "T5ForConditionalGeneration"])
@pytest.mark.parametrize(
    "told",
    [
        {"eos_token_id": ["x"]},
        {"eos_token_id": [[1]]},
        {"decoder_start_token_id": 10**6},
        {"decoder_start_token_id": [0]},
        {"bad_words_ids": "x"},
        {"suppress_tokens": "x"},
        {"forced_bos_token_id": 10**6},
        {"no_repeat_ngram_size": "x"},
    ],
    ids=str,
)
def test_generation_configs_are_checked(kind: str, told: dict[str, Any], tmp_path: Path) -> None:
    source = folder(tmp_path / "dense", kind)
    model, _ = se.io.load_pretrained(source)
    se.sparsify_(model, "csr")
    path = source / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    package = se.save(model, tmp_path / "packed", source=source)
    refused(lambda: open_task(se.load(package), package), "generation_config|token_id")


def test_a_config_without_return_dict_gives_the_same_answers(package: Path, tmp_path: Path) -> None:
    expected = open_task(se.load(package), package).embed(["the cat sat"])
    source = tmp_path / "source"
    source.mkdir()
    for name, data in read_companions(package).items():
        (source / name).write_bytes(data)
    plain = json.loads((source / "config.json").read_bytes())
    (source / "config.json").write_text(json.dumps(plain | {"return_dict": False}))
    again = se.save(se.load(package), tmp_path / "again", source=source)
    assert open_task(se.load(again), again).embed(["the cat sat"]).equal(expected)
