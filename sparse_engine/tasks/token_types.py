"""Whether a model was taught to tell the two texts of a pair apart by token types.

Most tokenizer.json number the texts of a pair, but the tokenizer of a model gives these numbers on
only where its `model_input_names` has them: a model that never saw them answers otherwise with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_engine.io.model_files import ModelFiles

NAME = "token_type_ids"


def has_token_types(folder: Path, config: dict[str, Any]) -> bool:
    """What tokenizer_config.json in `folder` has, else the tokenizer class of the model's kind.

    True for models that transformers has no tokenizer for. Raises InvalidFileError for damaged files.
    """
    told = ModelFiles(folder).json("tokenizer_config.json") or {}
    names = told.get("model_input_names")
    if isinstance(names, list):
        return NAME in names
    try:
        import transformers
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
    except ImportError:
        return True
    wanted = told.get("tokenizer_class") or config.get("tokenizer_class")
    wanted = str(wanted or TOKENIZER_MAPPING_NAMES.get(str(config.get("model_type"))))
    if not wanted.removesuffix("Fast").endswith(("Tokenizer", "TokenizersBackend")):
        return True
    found = getattr(getattr(transformers, wanted, None), "model_input_names", None)
    return found is None or NAME in found
