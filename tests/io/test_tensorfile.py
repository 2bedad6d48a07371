"""Hostile tensor tables: what safetensors checks, and what it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from io_cases import read_table, refused, write_table
from torch import nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.io import load, save


def shift(table: dict[str, Any], name: str, by: int) -> None:
    table[name]["data_offsets"] = [n + by for n in table[name]["data_offsets"]]


TABLE_CASES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("missing", lambda t: t.pop("4.weight"), "trailing bytes"),
    (
        "extra",
        lambda t: t.update(x=dict(dtype="F32", shape=[0], data_offsets=[0, 0])),
        "'x' is not",
    ),
    ("renamed", lambda t: t.update(x=t.pop("4.weight")), "'4.weight' of .* is missing"),
    ("overlap", lambda t: shift(t, "1.values", -64), "overlaps"),
    ("hole", lambda t: shift(t, "4.weight", 4), "leaves a hole"),
    ("negative", lambda t: shift(t, "0.values", -4), "data_offsets are not two sizes"),
    ("swap", lambda t: t["4.weight"].update(data_offsets=[60, 0]), "data_offsets hold -60"),
    ("dtype", lambda t: t["4.weight"].update(dtype="I32"), "is int32 .* has float32"),
    ("dtype 2", lambda t: t["4.weight"].update(dtype="F99"), "unknown dtype 'F99'"),
    ("dtype 3", lambda t: t["4.weight"].update(dtype=["F32"]), "unknown dtype"),
    ("shape", lambda t: t["4.weight"].update(shape=[3, 5]), r"\[3, 5\], .* has float32 \[5, 3\]"),
    ("bool", lambda t: t["4.weight"].update(shape=[True, 15]), "not a list of at most 8 sizes"),
    ("float", lambda t: t["4.weight"].update(shape=[5.0, 3]), "not a list of at most 8 sizes"),
    ("minus", lambda t: t["4.weight"].update(shape=[-5, -3]), "not a list of at most 8 sizes"),
    ("absurd", lambda t: t["4.weight"].update(shape=[10**12, 10**12]), "needs 4" + "0" * 24),
    ("2^64", lambda t: t["4.weight"].update(shape=[1 << 62, 4]), "needs 73786976294838206464"),
    ("dims", lambda t: t["4.weight"].update(shape=[1] * 9), "not a list of at most 8 sizes"),
    ("keys", lambda t: t["4.weight"].update(path="x"), "expected dtype, shape and data_offsets"),
    ("entry", lambda t: t.update({"4.weight": 3}), "expected dtype, shape and data_offsets"),
]


@pytest.mark.parametrize(
    ("edit", "match"), [case[1:] for case in TABLE_CASES], ids=[case[0] for case in TABLE_CASES]
)
def test_tensor_table(edit: Callable[[dict[str, Any]], Any], match: str, bad: Path) -> None:
    table, data = read_table(bad)
    edit(table)
    write_table(bad, table, data)
    refused(bad, match)


def test_duplicate_names_in_the_table(bad: Path) -> None:
    table, data = read_table(bad)
    text = json.dumps(table)
    write_table(bad, text[:-1] + ', "4.weight": ' + json.dumps(table["4.weight"]) + "}", data)
    refused(bad, "'4.weight' appears twice")


def test_many_names_and_one_of_them_twice(bad: Path) -> None:
    """As fast as reading them: each name is looked up once."""
    _, data = read_table(bad)
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    names = [f"t{i}" for i in range(150_000)]
    text = ", ".join(f'"{name}": {entry}' for name in [*names, names[-1]])
    write_table(bad, f"{{{text}}}", data)
    refused(bad, "'t149999' appears twice")


def test_tensors_off_their_boundary(bad: Path) -> None:
    table, data = read_table(bad)
    raw = json.dumps(table).encode()
    raw += b" " * (-(8 + len(raw)) % 64 + 8)
    (bad / "sparse_engine.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    refused(bad, "not on a 64-byte boundary")


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_header_length(length: int, bad: Path) -> None:
    path = bad / "sparse_engine.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(bad, "header")


def test_a_bool_that_is_neither(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("flags", torch.tensor([True, False]))
    folder = save(model, tmp_path / "a")
    table, _ = read_table(folder)
    write_table(folder, table, b"\x01\x02")
    with pytest.raises(InvalidFileError, match="'flags': a bool is neither 0 nor 1"):
        load(folder, model=model)
