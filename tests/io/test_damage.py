"""Damaged packages: truncated, flipped, linked: one InvalidFileError of one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from io_cases import edit_manifest, is_refused, read_table, refused, skeleton, write_table
from torch import nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.io import load, save, verify


def test_the_good_one_and_an_equal_copy_are_taken(good: Path, bad: Path) -> None:
    load(good, model=skeleton())
    verify(good)
    edit_manifest(bad, lambda manifest: None)
    write_table(bad, *read_table(bad))
    load(bad, model=skeleton())


@pytest.mark.parametrize("name", ["sparse_engine.safetensors", "sparse_engine.json"])
def test_truncated_anywhere(name: str, bad: Path) -> None:
    raw = (bad / name).read_bytes()
    for end in {0, 1, 7, 8, 9, *range(10, len(raw), 53), len(raw) - 1}:
        (bad / name).write_bytes(raw[:end])
        refused(bad, name)


@pytest.mark.parametrize("name", ["sparse_engine.safetensors", "sparse_engine.json"])
def test_anything_appended(name: str, bad: Path) -> None:
    with open(bad / name, "ab") as file:
        file.write(b"\0")
    refused(bad, name)


def test_every_flip_in_the_manifest_is_seen(bad: Path) -> None:
    path = bad / "sparse_engine.json"
    raw = path.read_bytes()
    for at in range(0, len(raw), 13):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        assert is_refused(bad, lambda: load(bad, model=skeleton())), at


def test_every_flip_in_the_header_is_seen(bad: Path) -> None:
    path = bad / "sparse_engine.safetensors"
    raw = path.read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    for at in [*range(16), *range(16, length, 5)]:
        flipped = bytearray(raw)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        assert is_refused(bad, lambda: load(bad, model=skeleton())), at


STRUCTURAL = ("columns", "pointers", "mask", "positions", "rows", "stretches", "starts")


def test_every_flip_in_the_data_is_seen_at_load_or_by_verify(bad: Path) -> None:
    path = bad / "sparse_engine.safetensors"
    raw = path.read_bytes()
    table, data = read_table(bad)
    base = len(raw) - len(data)
    at_load = dict.fromkeys(table, 0)
    for name, entry in table.items():
        begin, end = entry["data_offsets"]
        for at in range(begin, end, 5):
            flipped = bytearray(raw)
            flipped[base + at] ^= 1 << (at % 8)
            path.write_bytes(flipped)
            at_load[name] += is_refused(bad, lambda: load(bad, model=skeleton()))
            assert is_refused(bad, lambda: verify(bad)), (name, at)
    for name, count in at_load.items():
        structural = name.split(".")[-1] in STRUCTURAL
        assert bool(count) == (structural or name.startswith("__pad")), name


def test_flips_in_companions_are_seen_at_load_and_by_verify(bad: Path) -> None:
    """A changed tokenizer would ask the model something else without any error."""
    (bad / "vocab.txt").write_text("a\nc\n")
    for read in (lambda: load(bad, model=skeleton()), lambda: verify(bad)):
        with pytest.raises(InvalidFileError, match=r"vocab\.txt: is not the file that was packed"):
            read()
    (bad / "vocab.txt").unlink()
    for read in (lambda: load(bad, model=skeleton()), lambda: verify(bad)):
        with pytest.raises(InvalidFileError, match=r"vocab\.txt: is missing"):
            read()


@pytest.mark.parametrize("name", ["sparse_engine.safetensors", "sparse_engine.json"])
@pytest.mark.parametrize("kind", ["missing", "link", "folder", "fifo"])
def test_files_must_be_files(kind: str, name: str, bad: Path, tmp_path: Path) -> None:
    moved = (bad / name).rename(tmp_path / "outside")
    if kind == "link":
        (bad / name).symlink_to(moved)
    elif kind == "folder":
        (bad / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(bad / name)
    told = {"missing": "is missing", "link": "is a link"}.get(kind, "is not a regular file")
    refused(bad, f"{name}: {told}")


def test_a_folder_on_the_way_must_not_be_a_link(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "1_Pooling/config.json").write_text("{}")
    folder = save(nn.Linear(2, 2), tmp_path / "a", source=source)
    verify(folder)
    shutil.rmtree(folder / "1_Pooling")
    (folder / "1_Pooling").symlink_to(source / "1_Pooling")
    with pytest.raises(InvalidFileError, match=r"1_Pooling/config\.json: is a link"):
        verify(folder)


def test_the_folder_of_a_model_is_told_from_a_package(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, f"is missing; .* no package: sparse-engine convert {tmp_path} PACKAGE")


def test_no_folder_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is not a folder")


def test_a_model_that_does_not_fit_is_left_alone(good: Path) -> None:
    models = [
        (nn.Sequential(*skeleton(), nn.Linear(2, 2)), "'5.weight' of the model is missing"),
        (skeleton()[:4], "model has no tensor '4.weight'"),
        (nn.Sequential(*skeleton()[:4], nn.Embedding(5, 4)), r"\[5, 3\], the model has .*\[5, 4\]"),
        (nn.Sequential(nn.Linear(7, 9, bias=False), *skeleton()[1:]), "has a bias, unlike"),
        (nn.Sequential(nn.Linear(8, 9), *skeleton()[1:]), r"'0' is \[9, 7\], the model has \[9, 8"),
        (nn.Sequential(nn.ReLU(), *skeleton()[1:]), "'0' is a ReLU in the model"),
    ]
    for model, message in models:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(InvalidFileError, match=message):
            load(good, model=model)
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
