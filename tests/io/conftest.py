"""Folders that several tests of packages and checkpoints start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intact package with a layer of each format."""
    from io_cases import make_good

    folder = tmp_path_factory.mktemp("io")
    return make_good(folder / "good", folder / "source")


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(good, tmp_path / "bad"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT as Hugging Face writes it."""
    from tiny_bert import build

    build().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"
