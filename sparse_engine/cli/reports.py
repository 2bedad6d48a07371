"""The options --report and --examples: checked before any work, and the answers before pruning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sparse_engine.errors import UsageError

if TYPE_CHECKING:
    from sparse_engine.tasks import Comparison

MOST_EXAMPLES = 50


def read_examples(report: Path | None, examples: Path | None) -> list[str]:
    """The texts of --examples, after --report was checked; an empty list without the option.

    Raises:
        UsageError: the page could not be written, or the texts cannot be read or are too many.
    """
    from sparse_engine.reporting.pyplot import check_output
    from sparse_engine.text.sources import read_texts

    if report is not None:
        check_output(report, "--report", (".html",))
    if examples is None:
        return []
    if report is None:
        raise UsageError("--examples are shown on the page: give --report page.html too")
    texts = read_texts(examples, "examples file")
    if len(texts) > MOST_EXAMPLES:
        raise UsageError(f"{examples} has {len(texts)} texts: choose at most {MOST_EXAMPLES}")
    return texts


def compare(model: nn.Module, folder: Path, texts: list[str]) -> Comparison | None:
    """The answers of the model to the texts, which it will give again; None without texts."""
    from sparse_engine.tasks import Comparison, open_task

    return Comparison(open_task(model, folder), texts) if texts else None
