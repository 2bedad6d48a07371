"""Tasks: text in, an answer out. The class of a model's head decides which task it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.generation.sampling import Sampling
from sparse_engine.tasks.classify import Answerer, Classifier, TokenClassifier
from sparse_engine.tasks.comparison import Comparison
from sparse_engine.tasks.embed import Embedder
from sparse_engine.tasks.generate import Generator, Rewriter
from sparse_engine.tasks.sentence_encoder import SentenceEncoder
from sparse_engine.tasks.sentence_modules import check_packaged
from sparse_engine.tasks.text_model import InputError

Task = Embedder | Classifier | TokenClassifier | Answerer | Generator | Rewriter
# Suffixes of class names, which transformers uses for all architectures.
HEADS: tuple[tuple[str, Any], ...] = (
    ("ForSequenceClassification", Classifier),
    ("ForTokenClassification", TokenClassifier),
    ("ForQuestionAnswering", Answerer),
    ("ForCausalLM", Generator),
    ("LMHeadModel", Generator),
    ("ForConditionalGeneration", Rewriter),
    ("MTModel", Rewriter),
)


def check_pooling(model: nn.Module, folder: str | Path) -> None:
    """Check that a package of a model without a head can be opened as an embedding task.

    Raises UnsupportedModelError for modules or a pooling that are not supported, or for files that
    packages do not keep, and InvalidFileError for damaged files.
    """
    if _kind_of(model) is Embedder:
        check_packaged(folder)


def _kind_of(model: nn.Module) -> Any:
    """The class of the task of a model; None for a head without a task."""
    name = type(model).__name__
    for suffix, task in HEADS:
        if name.endswith(suffix):
            return task
    if "For" in name and not name.endswith(("Model", "ForMaskedLM", "ForPreTraining")):
        return None
    return Embedder


def open_task(model: nn.Module, folder: str | Path) -> Task:
    """The task of a transformers model with the tokenizer of its folder.

    A model without a head gives embeddings. Raises UnsupportedModelError for a model with a head
    that no task is for, and InvalidFileError for a folder without a tokenizer.

    >>> se.tasks.open_task(se.load("out/"), "out/").embed(["one text"])
    """
    kind = _kind_of(model)
    if kind is None:
        name = type(model).__name__
        raise UnsupportedModelError(f"no task for {name}: load its base model for embeddings")
    task: Task = kind(model, folder)
    return task


__all__ = [
    "Answerer",
    "Classifier",
    "Comparison",
    "Embedder",
    "Generator",
    "InputError",
    "Rewriter",
    "Sampling",
    "SentenceEncoder",
    "Task",
    "TokenClassifier",
    "check_pooling",
    "open_task",
]
