"""What a model makes of a text before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparse_engine.reporting.chart import Table


@dataclass(frozen=True)
class Example:
    """One text.

    Attributes:
        text: what the model reads.
        before, after: the answers of the dense and of the pruned model, as text.
        similarity: cosine of the two embeddings, for a model that gives embeddings.
    """

    text: str
    before: str
    after: str
    similarity: float | None = None


def example_table(examples: Sequence[Example]) -> Table:
    """A row for each text."""
    with_cosine = any(example.similarity is not None for example in examples)
    head = ("text", "before", "after", *(("cosine of the embeddings",) if with_cosine else ()))
    rows = tuple(
        (
            example.text,
            example.before,
            example.after,
            *((_cosine(example.similarity),) if with_cosine else ()),
        )
        for example in examples
    )
    return Table(head, rows, left=3)


def _cosine(similarity: float | None) -> str:
    return "" if similarity is None else f"{similarity:.3f}"
