"""The models of the tokenizers library, one a file: which of their tokens a text needs."""

from __future__ import annotations

from typing import Any

from sparse_engine.vocabulary.models.base import TokenModel
from sparse_engine.vocabulary.models.bpe import BPE
from sparse_engine.vocabulary.models.unigram import Unigram
from sparse_engine.vocabulary.models.word_level import WordLevel
from sparse_engine.vocabulary.models.wordpiece import WordPiece

MODELS: tuple[type[TokenModel], ...] = (WordPiece, BPE, Unigram, WordLevel)


def token_model(plain: dict[str, Any]) -> TokenModel:
    """The model of a tokenizer.json, of one of the four types that the library has."""
    return next(cls for cls in MODELS if cls.type == plain["type"])(plain)


__all__ = ["TokenModel", "token_model"]
