"""What a model answers: text in, an answer out, by the head that the model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.tasks.classify import Answerer, Classifier, TokenClassifier
from sparse_engine.tasks.embed import Embedder
from sparse_engine.tasks.generate import Generator, Rewriter, Sampling
from sparse_engine.tasks.text import InputError

Task = Embedder | Classifier | TokenClassifier | Answerer | Generator | Rewriter
# By the end of the class name, which transformers uses for every architecture alike.
HEADS: tuple[tuple[str, Any], ...] = (
    ("ForSequenceClassification", Classifier),
    ("ForTokenClassification", TokenClassifier),
    ("ForQuestionAnswering", Answerer),
    ("ForCausalLM", Generator),
    ("LMHeadModel", Generator),
    ("ForConditionalGeneration", Rewriter),
    ("MTModel", Rewriter),
)


def open_task(model: nn.Module, folder: str | Path) -> Task:
    """The task of a transformers model, with the tokenizer of its folder; embeddings without a head.

    Raises UnsupportedModelError for a model with a head that is not known here, InvalidFileError
    for a folder without a tokenizer.

    >>> se.tasks.open_task(se.load("out/"), "out/").embed(["one text"])
    """
    name = type(model).__name__
    for suffix, task in HEADS:
        if name.endswith(suffix):
            found: Task = task(model, folder)
            return found
    if "For" in name and not name.endswith(("Model", "ForMaskedLM", "ForPreTraining")):
        raise UnsupportedModelError(f"no task for {name}: load its base model for embeddings")
    return Embedder(model, folder)


__all__ = [
    "Answerer",
    "Classifier",
    "Embedder",
    "Generator",
    "InputError",
    "Rewriter",
    "Sampling",
    "Task",
    "TokenClassifier",
    "open_task",
]
