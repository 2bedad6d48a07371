"""Tagging of words, from a folder of texts to a package.

    python examples/tag.py --model bilstm
    python examples/tag.py --model bert --data FOLDER    # WNUT-17

The files of FOLDER have a word, a tab and a tag a line, and an empty line after each sentence; tags
are O, B-KIND and I-KIND. Without it, the task is to find the words of the built-in text, in lower
case, that were written with a capital, or in capitals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from common.data import built_in_tagged, read_parts, split, tagged
from common.hugging import bert, with_classifier
from common.rows import IGNORED, Row, in_order, logits_of
from common.run import Line, parser, run
from common.training import Task
from torch import nn

from sparse_engine.cli.common import run_script
from sparse_engine.models.rnn import RnnForTokenClassification

MODELS = ("bilstm", "bigru", "bert")
MAX_WORDS = 96


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Start, end and kind of each span of the tags of a sentence.

    Example:
        spans(["B-person", "I-person", "O"])  # {(0, 2, "person")}
    """
    found, start = set(), 0
    for i, (tag, following) in enumerate(zip(tags, [*tags[1:], "O"], strict=False)):
        kind = tag[2:]
        if i == 0 or tag[:2] != "I-" or tags[i - 1][2:] != kind:
            start = i
        if tag != "O" and following != f"I-{kind}":
            found.add((start, i + 1, kind))
    return found


@torch.inference_mode()
def span_f1(model: nn.Module, rows: Sequence[Row], labels: Sequence[str]) -> float:
    """F1 in per cent of the spans that are right in both ends and in their kind."""
    right = predicted = expected = 0
    for batch in in_order(rows):
        for ids, truth in zip(logits_of(model, batch).argmax(-1), batch["labels"], strict=True):
            seen = truth != IGNORED
            found, true = (spans([labels[i] for i in x[seen].tolist()]) for x in (ids, truth))
            right += len(found & true)
            predicted += len(found)
            expected += len(true)
    return 200 * right / max(predicted + expected, 1)


def make_task(given: argparse.Namespace) -> Task:
    """The task of the options."""
    if given.data is not None:
        parts = read_parts(given.data, tagged, given.limit, fold=given.fold)
    else:
        parts = split(built_in_tagged(), "built-in text", given.limit, fold=given.fold)
    texts = [words for words, _ in parts.train]
    rows = (*parts.train, *parts.valid, *parts.test)
    labels = sorted({tag for _, tags in rows for tag in tags})
    ids = {label: i for i, label in enumerate(labels)}
    if given.model == "bert":
        tokenizer, build = bert("ForTokenClassification", labels, texts, given)
    else:
        tokenizer, build = with_classifier(RnnForTokenClassification, labels, texts, given)

    def encoded(sentence: tuple[list[str], list[str]]) -> Row:
        """The tag of a word is that of its first token."""
        words, tags = (part[:MAX_WORDS] for part in sentence)
        found = tokenizer.encode(words, is_pretokenized=True)
        before = [None, *found.word_ids]
        return {
            "input_ids": found.ids,
            "attention_mask": found.attention_mask,
            "labels": [
                IGNORED if word is None or word == last else ids[tags[word]]
                for word, last in zip(found.word_ids, before, strict=False)
            ],
        }

    def evaluate(model: nn.Module, rows: Sequence[Row]) -> float:
        return span_f1(model, rows, labels)

    return Task(
        f"tag {given.model}", "span F1 %", build, parts.map(encoded), evaluate, tokenizer=tokenizer
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
