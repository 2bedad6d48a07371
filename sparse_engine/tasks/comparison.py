"""What a model makes of some texts before and after it is changed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.generation.sampling import Sampling
from sparse_engine.reporting.example import Example
from sparse_engine.tasks.classify import Answerer, Classifier, TokenClassifier
from sparse_engine.tasks.embed import Embedder
from sparse_engine.tasks.generate import Generator
from sparse_engine.tasks.text_model import TextModel

NEW_TOKENS = 32
"""Length of a generated text, in tokens."""
LABELS = 2
"""Labels of a text that are shown."""
QUOTED = 60
"""Characters of another text that are quoted."""


class Comparison:
    """The answers of a model before a change in place, to be compared with those after it.

    Of a text, an encoder says which other text is closest, with the cosine of the two embeddings;
    a classifier gives its likeliest labels, a tagger its spans, a generator the text that follows.
    A question and the text that holds its answer are separated by a tab.

    Args:
        task: from `open_task`.
        texts: what the model reads.

    Raises:
        UsageError: without texts, or for one that the model cannot read.

    Example:
        comparison = se.tasks.Comparison(se.tasks.open_task(model, folder), texts)
        report = se.prune(model, 0.8)
        report.examples = comparison.examples()
    """

    def __init__(self, task: TextModel, texts: Sequence[str]) -> None:
        if not texts:
            raise UsageError("there is no text to compare; give at least one")
        self._task = task
        self._texts = list(texts)
        self._embeddings, self._before = self._answers()

    def examples(self) -> list[Example]:
        """Each text with the answer before, and the answer of the model as it is now."""
        embeddings, after = self._answers()
        similarities: list[float | None] = [None] * len(after)
        if embeddings is not None and self._embeddings is not None:
            similarities = F.cosine_similarity(embeddings, self._embeddings).tolist()
        return [
            Example(*row)
            for row in zip(self._texts, self._before, after, similarities, strict=True)
        ]

    def _answers(self) -> tuple[Tensor | None, list[str]]:
        """The embeddings [texts, hidden] of an encoder, and the answer to each text."""
        task: Any = self._task
        if isinstance(task, Embedder):
            embeddings = task.embed(self._texts)
            return embeddings, _closest(embeddings, self._texts)
        if isinstance(task, Classifier):
            found = task.classify(self._texts)
            return None, [_listed((label.label, label.score) for label in row) for row in found]
        if isinstance(task, TokenClassifier):
            return None, [
                "; ".join(f"{span.text}: {span.label}" for span in row) or "nothing"
                for row in task.tag(self._texts)
            ]
        if isinstance(task, Answerer):
            return None, [self._answer(text) for text in self._texts]
        assert isinstance(task, Generator)
        sampling = Sampling(max_tokens=NEW_TOKENS)
        return None, [task.generate(text, sampling) for text in self._texts]

    def _answer(self, text: str) -> str:
        question, tab, context = text.partition("\t")
        if not tab:
            raise UsageError(f"{text[:40]!r}: give a question, a tab and the text with its answer")
        task: Any = self._task
        span = task.answer(question, context)
        return f"{span.text} ({span.score:.2f})"


def _closest(embeddings: Tensor, texts: Sequence[str]) -> list[str]:
    """The closest other text of each text."""
    if len(texts) < 2:
        return ["" for _ in texts]
    unit = F.normalize(embeddings, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    best = cosines.max(1)
    return [
        f"closest to “{textwrap.shorten(texts[int(i)], QUOTED, placeholder='…')}” ({float(c):.2f})"
        for c, i in zip(best.values, best.indices, strict=True)
    ]


def _listed(labels: Any) -> str:
    return ", ".join(f"{label} {score:.2f}" for label, score in list(labels)[:LABELS])
