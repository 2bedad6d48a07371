"""Whether a model was trained with token types, which number the two texts of a pair.

Most tokenizer.json number the texts of a pair, but the tokenizer of a model passes the numbers on
only if its `model_input_names` has them. A model that was trained without them gives other answers
with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_engine.io.model_files import ModelFiles

NAME = "token_type_ids"


def has_token_types(folder: Path, config: dict[str, Any]) -> bool:
    """Whether tokenizer_config.json in `folder`, else the tokenizer class of the model, has them.

    True for models without a tokenizer class in transformers. Raises InvalidFileError for damaged
    files.
    """
    config_file = ModelFiles(folder).json("tokenizer_config.json") or {}
    names = config_file.get("model_input_names")
    if isinstance(names, list):
        return NAME in names
    try:
        import transformers
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
    except ImportError:
        return True
    class_name = config_file.get("tokenizer_class") or config.get("tokenizer_class")
    class_name = str(class_name or TOKENIZER_MAPPING_NAMES.get(str(config.get("model_type"))))
    if not class_name.removesuffix("Fast").endswith(("Tokenizer", "TokenizersBackend")):
        return True
    found = getattr(getattr(transformers, class_name, None), "model_input_names", None)
    return found is None or NAME in found
