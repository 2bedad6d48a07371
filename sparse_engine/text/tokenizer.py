"""The tokenizer of a model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_engine.errors import InvalidFileError, UsageError, one_line
from sparse_engine.io.model_files import ModelFiles


def load_tokenizer(folder: Path) -> Any:
    """Load tokenizer.json of a model's folder as a `tokenizers.Tokenizer`.

    Its own padding and truncation are switched off: many published files cut texts at 128 tokens
    silently. Raises InvalidFileError for a missing or damaged file.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError("texts need tokenizers: pip install sparse-engine[hf]") from error
    path = folder / "tokenizer.json"
    raw = ModelFiles(folder).read(path.name)
    if raw is None:
        raise InvalidFileError(f"{path} is missing: reading text needs the model's tokenizer")
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # the Rust side raises Exception itself
        raise InvalidFileError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[Any], special: bool = True) -> list[Any]:
    """Encode texts, or pairs of texts; raises UsageError where the tokenizer fails.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        texts: or pairs of them.
        special: with the tokens that it puts around a text.
    """
    with one_line("the tokenizer fails on a text; does its vocabulary have the unknown token?"):
        encodings: list[Any] = tokenizer.encode_batch(list(texts), add_special_tokens=special)
    return encodings
