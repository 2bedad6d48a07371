"""Cutting a vocabulary: the tokens that a corpus does not use are removed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparse_engine.errors import UsageError, one_line
from sparse_engine.io.checkpoint import find_folder
from sparse_engine.io.companions import Companion
from sparse_engine.io.model_files import read_companions
from sparse_engine.modules.readable import check_readable
from sparse_engine.named import find
from sparse_engine.structures import Vocabulary
from sparse_engine.structures.snapshot import unchanged_after_error
from sparse_engine.vocabulary.companions import check_companions, rewritten
from sparse_engine.vocabulary.configs import Renumbering
from sparse_engine.vocabulary.corpus import Progress, check_same, choose_size
from sparse_engine.vocabulary.report import VocabularyReport
from sparse_engine.vocabulary.rows import apply_, required_ids, resized, vocabulary_rows
from sparse_engine.vocabulary.tokenizer_file import TokenizerFile


def cut_vocabulary(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    structure: str | Vocabulary = "vocabulary",
    progress: Progress | None = None,
) -> VocabularyReport:
    """Remove the tokens that a corpus does not use from a model, in place, and from its tokenizer.

    Embeddings, output rows and biases lose their rows; the ids that are left are numbered anew, in
    the old order, and the model's configs follow. The corpus is split into the same tokens as
    before, and the model gives the same results for it. These tokens stay besides those that the
    corpus uses: special and added ones, single characters and bytes, so that other texts can still
    be read, and with BPE those from which the used ones are merged.

    Everything is checked before the model changes, also that the new tokenizer splits the corpus as
    the old one does.

    Args:
        model: of transformers, dense.
        tokenizer: the model's folder with a tokenizer.json, or a fast tokenizer of transformers.
        texts: the corpus, such as a list, or an open file of one text a line.
        structure: Vocabulary(), or its text form, such as "vocabulary(size=4096)".
        progress: called with (done, total, what).

    Returns:
        What was removed, and the new files of the folder.

    Raises:
        UsageError: if the corpus is empty, or does not fit the tokenizer, or the tokenizer does not
            fit the model.
        InvalidFileError: if a file of the folder is damaged.
        UnsupportedModelError: if a tensor depends on the vocabulary in another way than by rows.

    Example:
        report = se.cut_vocabulary(model, "MiniLM", open("corpus.txt"))
        se.io.save_checkpoint(model, "small", "MiniLM", {}, files=report.files)
        # or as a package
        se.save(model, "package", source="MiniLM", files=report.files)
    """
    option = structure if isinstance(structure, Vocabulary) else find(structure, (Vocabulary,))
    corpus = _corpus(texts)
    rows = vocabulary_rows(model)
    check_readable(model)
    files, where = _files(tokenizer)
    check_companions(files, where)
    old = TokenizerFile(files["tokenizer.json"], f"{where}/tokenizer.json")
    last = max(old.ids, key=old.ids.__getitem__)
    if old.ids[last] >= rows:
        raise UsageError(
            f"{where}: token {last!r} has id {old.ids[last]}, the model's vocabulary is 0 to "
            f"{rows - 1}; is this tokenizer the model's?"
        )
    required = required_ids(model, rows)
    special = {token for token, i in old.ids.items() if i in required}
    choice = choose_size(old, corpus, option, special, progress)
    with_token = {old.ids[token] for token in choice.kept}
    kept = sorted(with_token) + sorted(required - with_token)
    new = Renumbering(rows, {i: place for place, i in enumerate(kept)})
    cut = old.renumbered(new.moves)
    check_same(choice, cut, corpus, progress)
    tensors = resized(model, new)
    new_files = rewritten(files, old, cut, new)
    before = _parameters(model)
    with unchanged_after_error(model):
        apply_(model, tensors, new)
    return VocabularyReport(
        structure=str(option),
        rows=rows,
        kept=tuple(kept),
        tensors=tuple(item.name for item in tensors),
        parameters=(before, _parameters(model)),
        texts=len(corpus),
        tokens=(sum(choice.use.counts.values()), choice.use.counts[old.model.unknown or ""]),
        rare=len(old.ids) - len(choice.reference.ids),
        files=new_files,
    )


def _corpus(texts: Iterable[str]) -> list[str]:
    """The texts without line ends; raises UsageError if there are none."""
    if isinstance(texts, str):
        raise UsageError("texts is one string: give a list of texts, or an open file")
    with one_line("texts cannot be read"):
        given = list(texts)
    if other := next((text for text in given if not isinstance(text, str)), None):
        raise UsageError(f"texts holds {other!r:.60}, which is no text")
    corpus = [line for text in given if (line := text.rstrip("\r\n"))]
    if not corpus:
        raise UsageError("the corpus is empty: give texts like those that the model will read")
    return corpus


def _files(tokenizer: Any) -> tuple[dict[Companion, bytes], str]:
    """The companion files of a folder, or those that a tokenizer writes; and how to call them."""
    if isinstance(tokenizer, str | Path):
        folder = find_folder(tokenizer)
        return read_companions(folder), str(folder)
    if not hasattr(tokenizer, "save_pretrained"):
        raise UsageError(
            f"tokenizer is a {type(tokenizer).__name__}; give the model's folder, or a tokenizer "
            "of transformers"
        )
    with tempfile.TemporaryDirectory() as draft:
        with one_line("the tokenizer cannot be saved"):
            tokenizer.save_pretrained(draft)
        return read_companions(Path(draft)), type(tokenizer).__name__


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
