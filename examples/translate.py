"""Sequence to sequence with attention, letter by letter: English words into Pig Latin.

    python examples/translate.py
    python examples/translate.py --data FOLDER    # the words of any text

The files of FOLDER have a sentence a line. Words of the test are not among those for training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from common.data import Parts, built_in_sentences, read_parts, sentences, split, translations
from common.models import Translator
from common.rows import IGNORED, Row, in_order
from common.run import Line, parser, run
from common.training import Task
from common.vocabulary import END, START, word_tokenizer
from torch import Tensor, nn

from sparse_engine.cli.common import run_script

MODELS = ("gru",)


@torch.inference_mode()
def translate(model: nn.Module, source: Tensor, length: int) -> Tensor:
    """The likeliest letter after those before, `length` times; int64 [texts, length]."""
    found = source.new_full((len(source), 1), START)
    for _ in range(length):
        found = torch.cat([found, model(source, found)[:, -1:].argmax(-1)], 1)
    return found[:, 1:]


def exact(model: nn.Module, rows: Sequence[Row]) -> float:
    """Per cent of the words that are translated without a mistake."""
    right = 0
    for batch in in_order(rows):
        labels = batch["labels"]
        found = translate(model, batch["source"], labels.shape[1])
        right += int(((found == labels) | (labels == IGNORED)).all(1).sum())
    return 100 * right / len(rows)


def read(given: argparse.Namespace) -> Parts:
    """Letters of words, and of their translations."""
    if given.data is None:
        found, source = built_in_sentences(), "built-in text"
    else:
        parts = read_parts(given.data, sentences, None)
        found, source = [*parts.train, *parts.valid, *parts.test], parts.source
    return split(translations(found), source, given.limit, fold=given.fold)


def make_task(given: argparse.Namespace) -> Task:
    """The task of the options."""
    parts = read(given)
    tokenizer = word_tokenizer((letters for row in parts.train for letters in row), given.words)

    def encoded(row: tuple[list[str], list[str]]) -> Row:
        source, target = (tokenizer.encode(" ".join(letters)).ids for letters in row)
        return {"source": source, "previous": [START, *target], "labels": [*target, END]}

    build = partial(Translator, tokenizer.get_vocab_size(), given.size)
    return Task(f"translate {given.model}", "exact words %", build, parts.map(encoded), exact)


def options() -> argparse.ArgumentParser:
    """The options of the script."""
    return parser(__doc__.splitlines()[0], MODELS)


def main(arguments: list[str] | None = None) -> list[Line]:
    """Run the script; returns the lines of its table."""
    given = options().parse_args(arguments)
    return run(make_task(given), given)


if __name__ == "__main__":
    run_script(main)
