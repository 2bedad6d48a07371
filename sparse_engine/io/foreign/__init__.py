"""Layouts in which other tools leave pruned models; one file a layout.

Which layout a folder has is read from its config.json and compared with enums in code. No file can
name a class or a module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparse_engine.io.companions import MAX_BYTES
from sparse_engine.io.folder import read_regular
from sparse_engine.io.foreign.base import Layout
from sparse_engine.io.foreign.compressed_tensors import CompressedTensors
from sparse_engine.io.foreign.masked_bert import MaskedBert
from sparse_engine.io.tensorfile import parse_json

__all__ = ["CompressedTensors", "Layout", "MaskedBert", "describe", "layout_of", "plain_config"]

# Files in which tools note how a model was pruned: this one, and SparseML.
RECIPES = ("pruning.json", "recipe.yaml")


def layout_of(config: dict[str, Any]) -> Layout | None:
    """The layout that config.json names; None for a plain checkpoint, or a quantised one.

    Raises:
        InvalidFileError: The layout's own keys are wrong.
        UnsupportedModelError: A variant of the layout that is not read.
    """
    return CompressedTensors.of(config) or MaskedBert.of(config)


def describe(folder: Path) -> str:
    """One line on a checkpoint folder: its architecture, its layout, and recipes beside it.

    Raises InvalidFileError, UnsupportedModelError.

    >>> describe(Path("pruned"))
    'pruned: BertModel; recipe: pruning.json'
    """
    path = folder / "config.json"
    config = parse_json(read_regular(path, MAX_BYTES) or b"", str(path))
    layout = layout_of(config)
    names = (config if layout is None else layout.config).get("architectures")
    known = isinstance(names, list) and names and isinstance(names[0], str)
    parts = [names[0][:80] if known else str(config.get("model_type"))[:80]]  # type: ignore[index]
    parts += [] if layout is None else [f"stored as {layout}"]
    parts += [f"recipe: {name}" for name in RECIPES if (folder / name).is_file()]
    return f"{folder}: {'; '.join(parts)}"


def plain_config(raw: bytes, what: str) -> bytes:
    """The bytes of a config.json without the keys of a layout; as they are for a plain one.

    Raises InvalidFileError, UnsupportedModelError.
    """
    layout = layout_of(parse_json(raw, what))
    return raw if layout is None else (json.dumps(layout.config, indent=2) + "\n").encode()
