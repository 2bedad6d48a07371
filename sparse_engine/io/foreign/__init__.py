"""Layouts in which other tools leave pruned models; one file a layout.

Which layout a folder has is read from its config.json and compared with enums in code. No file can
name a class or a module.
"""

from __future__ import annotations

import json
from typing import Any

from sparse_engine.io.foreign.base import Layout
from sparse_engine.io.foreign.compressed_tensors import CompressedTensors
from sparse_engine.io.foreign.masked_bert import MaskedBert
from sparse_engine.io.tensorfile import parse_json

__all__ = ["CompressedTensors", "Layout", "MaskedBert", "layout_of", "plain_config"]


def layout_of(config: dict[str, Any]) -> Layout | None:
    """The layout that config.json names; None for a plain checkpoint, or a quantised one.

    Raises:
        InvalidFileError: The layout's own keys are wrong.
        UnsupportedModelError: A variant of the layout that is not read.
    """
    return CompressedTensors.of(config) or MaskedBert.of(config)


def plain_config(raw: bytes, what: str) -> bytes:
    """The bytes of a config.json without the keys of a layout; as they are for a plain one.

    Raises InvalidFileError, UnsupportedModelError.
    """
    layout = layout_of(parse_json(raw, what))
    return raw if layout is None else (json.dumps(layout.config, indent=2) + "\n").encode()
