"""A package to damage, and the tools for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparse_engine as se
from sparse_engine.errors import InvalidFileError
from sparse_engine.io import load, save

torch.set_num_threads(1)
SPECS = {"0": "csr", "1": "bsr:2x3", "2": "bitmask", "3": "nm:2:4"}
SHAPES = ((13, 11), (11, 10), (10, 9), (9, 7))


def skeleton() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o) for o, i in reversed(SHAPES)), nn.Embedding(5, 3))


def make_good(target: Path, source: Path) -> Path:
    """A package with a layer of each format, an embedding and a companion file."""
    torch.manual_seed(0)
    model = skeleton().requires_grad_(False)
    for linear in model[:4]:
        linear.weight.mul_(torch.rand_like(linear.weight) < 0.3)
        linear.weight.mul_(torch.arange(linear.in_features) % 4 < 2)
    for name, spec in SPECS.items():
        se.sparsify_(model, spec, filter_fn=lambda module, path, name=name: path == name)
    source.mkdir()
    (source / "vocab.txt").write_text("a\nb\n")
    return save(model, target, source=source)


def refused(folder: Path, match: str = "") -> None:
    with pytest.raises(InvalidFileError, match=match) as caught:
        load(folder, model=skeleton())
    assert "\n" not in str(caught.value)


def is_refused(folder: Path, check: Callable[[], Any]) -> bool:
    """Whether `check` refuses; any error but InvalidFileError is a bug."""
    message = None
    try:
        check()
    except InvalidFileError as error:
        message = str(error)
    assert message is None or ("\n" not in message and str(folder) in message)
    return message is not None


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and give it a right sha256, so that later checks are reached."""
    path = folder / "sparse_engine.json"
    manifest = json.loads(path.read_bytes())
    edit(manifest)
    manifest["sha256"] = ""
    text = json.dumps(manifest, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(text.replace('"sha256": ""', f'"sha256": "{digest}"', 1))


def read_table(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / "sparse_engine.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_table(folder: Path, table: dict[str, Any] | str, data: bytes) -> None:
    text = table if isinstance(table, str) else json.dumps(table)
    header = text.encode()
    header += b" " * (-(8 + len(header)) % 64)
    raw = len(header).to_bytes(8, "little") + header + data
    (folder / "sparse_engine.safetensors").write_bytes(raw)
