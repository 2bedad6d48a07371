"""Text classification, from a folder of texts to a package.

    python examples/classify.py --model lstm
    python examples/classify.py --model cnn --data FOLDER    # SST-2, TREC, MR

The files of FOLDER have lines of a label, a space and a tokenised text. Without it, sentences of
the built-in text are sorted by the kind of document that they come from.
"""

from __future__ import annotations

import argparse
from functools import partial

from common.data import Parts, built_in_labelled, labelled, read_parts, split
from common.hugging import bert, with_classifier
from common.models import TextClassifier
from common.rows import Row, accuracy
from common.run import Line, parser, run
from common.training import Task
from common.vocabulary import word_tokenizer

from sparse_engine.cli.common import run_script
from sparse_engine.models.rnn import RnnForSequenceClassification

MODELS = ("lstm", "gru", "rnn", "bilstm", "cnn", "resnet", "bert")
MAX_WORDS = 96


def read(given: argparse.Namespace) -> Parts:
    """Words and label of every text."""
    if given.data is not None:
        return read_parts(given.data, labelled, given.limit, fold=given.fold)
    return split(built_in_labelled(), "built-in text", given.limit, fold=given.fold)


def make_task(given: argparse.Namespace) -> Task:
    """The task of the options."""
    parts = read(given)
    texts = [words for words, _ in parts.train]
    labels = sorted({label for _, label in parts.train})
    ids = {label: i for i, label in enumerate(labels)}
    is_plain = given.model in ("cnn", "resnet")
    if given.model == "bert":
        tokenizer, build = bert("ForSequenceClassification", labels, texts, given)
    elif is_plain:
        tokenizer = word_tokenizer(texts, given.words)
        size = tokenizer.get_vocab_size()
        build = partial(TextClassifier, given.model, size, len(labels), given.size)
    else:
        tokenizer, build = with_classifier(RnnForSequenceClassification, labels, texts, given)

    def encoded(text: tuple[list[str], str]) -> Row:
        found = tokenizer.encode(" ".join(text[0][:MAX_WORDS]))
        masks = {} if is_plain else {"attention_mask": found.attention_mask}
        return {"input_ids": found.ids, **masks, "labels": ids[text[1]]}

    return Task(
        f"classify {given.model}",
        "accuracy %",
        build,
        parts.map(encoded),
        accuracy,
        tokenizer=None if is_plain else tokenizer,
    )


def options() -> argparse.ArgumentParser:
    """The options of the script."""
    return parser(__doc__.splitlines()[0], MODELS)


def main(arguments: list[str] | None = None) -> list[Line]:
    """Run the script; returns the lines of its table."""
    given = options().parse_args(arguments)
    return run(make_task(given), given)


if __name__ == "__main__":
    run_script(main)
