"""Matching of two texts, from a folder of pairs to a package.

    python examples/match.py --model cnn
    python examples/match.py --model bert --data FOLDER --pretrained MODEL    # SICK

The files of FOLDER are tables with tabs and a header that has sentence_A, sentence_B and
entailment_judgment. Without it, the task is to tell whether two extracts are of one sentence of the
built-in text. rnn, lstm, gru, cnn and resnet read each text alone; bert reads both together.
"""

from __future__ import annotations

import argparse
from functools import partial

from common.data import built_in_pairs, pairs, read_parts, split
from common.hugging import bert
from common.models import PairClassifier
from common.rows import Row, accuracy
from common.run import Line, parser, run
from common.training import Task
from common.vocabulary import word_tokenizer

from sparse_engine.cli.common import run_script

MODELS = ("cnn", "lstm", "gru", "rnn", "resnet", "bert")
MAX_WORDS = 48


def make_task(given: argparse.Namespace) -> Task:
    """The task of the options."""
    if given.data is not None:
        parts = read_parts(given.data, pairs, given.limit, fold=given.fold)
    else:
        parts = split(built_in_pairs(), "built-in text", given.limit, fold=given.fold)
    texts = [words for first, second, _ in parts.train for words in (first, second)]
    labels = sorted({label for _, _, label in parts.train})
    ids = {label: i for i, label in enumerate(labels)}
    is_bert = given.model == "bert"
    if is_bert:
        tokenizer, build = bert("ForSequenceClassification", labels, texts, given)
    else:
        tokenizer = word_tokenizer(texts, given.words)
        size = tokenizer.get_vocab_size()
        build = partial(PairClassifier, given.model, size, len(labels), given.size)

    def encoded(pair: tuple[list[str], list[str], str]) -> Row:
        first, second = (" ".join(words[:MAX_WORDS]) for words in pair[:2])
        label = ids[pair[2]]
        if not is_bert:
            left, right = tokenizer.encode(first), tokenizer.encode(second)
            return {"first": left.ids, "second": right.ids, "labels": label}
        found = tokenizer.encode(first, second)
        return {
            "input_ids": found.ids,
            "token_type_ids": found.type_ids,
            "attention_mask": found.attention_mask,
            "labels": label,
        }

    name, rows = f"match {given.model}", parts.map(encoded)
    return Task(name, "accuracy %", build, rows, accuracy, tokenizer=tokenizer if is_bert else None)


def options() -> argparse.ArgumentParser:
    """The options of the script."""
    return parser(__doc__.splitlines()[0], MODELS)


def main(arguments: list[str] | None = None) -> list[Line]:
    """Run the script; returns the lines of its table."""
    given = options().parse_args(arguments)
    return run(make_task(given), given)


if __name__ == "__main__":
    run_script(main)
