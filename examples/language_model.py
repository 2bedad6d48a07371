"""Language models, from a folder of text to a package that generates.

    python examples/language_model.py --model lstm
    python examples/language_model.py --model gpt --data FOLDER    # Brown

The files of FOLDER have a sentence a line, words separated by spaces. The embedding and the output
layer of all models are tied.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import chain

import torch
from common.data import Parts, built_in_sentences, read_parts, sentences, split
from common.hugging import gpt, recurrent
from common.rows import Row, in_order, loss_of
from common.run import Line, parser, run
from common.training import Task
from common.vocabulary import END, SPECIAL, word_tokenizer
from tokenizers import Tokenizer
from torch import nn

from sparse_engine.cli.common import run_script

MODELS = ("lstm", "gru", "rnn", "gpt")
WINDOW = 64  # words that a model reads at once


def windows(texts: Sequence[list[str]], tokenizer: Tokenizer) -> list[Row]:
    """Windows of the texts one after another, and the next word of each word."""
    encodings = tokenizer.encode_batch([" ".join([*text, SPECIAL[END]]) for text in texts])
    ids = list(chain.from_iterable(encoding.ids for encoding in encodings))
    starts = range(0, len(ids) - 1, WINDOW)
    return [
        {
            "input_ids": ids[i : i + WINDOW][: len(ids) - 1 - i],
            "labels": ids[i + 1 : i + 1 + WINDOW],
        }
        for i in starts
    ]


@torch.inference_mode()
def perplexity(model: nn.Module, rows: Sequence[Row]) -> float:
    """The exponential of the mean cross-entropy of the next word."""
    total = sum(float(loss_of(model, batch, "sum")) for batch in in_order(rows, 16))
    return math.exp(min(total / sum(len(row["labels"]) for row in rows), 700))


def make_task(given: argparse.Namespace) -> Task:
    """The task of the options."""
    if given.data is not None:
        parts = read_parts(given.data, sentences, given.limit, drawn=False, fold=given.fold)
    else:
        parts = split(built_in_sentences(), "built-in text", given.limit, fold=given.fold)
    tokenizer = word_tokenizer(parts.train, given.words)
    rows = Parts(
        *(windows(part, tokenizer) for part in (parts.train, parts.valid, parts.test)), parts.source
    )
    size = tokenizer.get_vocab_size()

    def build() -> nn.Module:
        return gpt(size, 4 * WINDOW, given) if given.model == "gpt" else recurrent(size, given)

    return Task(
        f"language model {given.model}",
        "perplexity",
        build,
        rows,
        perplexity,
        sign=-1,
        tokenizer=tokenizer,
    )


def options() -> argparse.ArgumentParser:
    """The options of the script."""
    found = parser(__doc__.splitlines()[0], MODELS)
    found.set_defaults(batch=16, words=2000, steps=300, prune_steps=200)
    return found


def main(arguments: list[str] | None = None) -> list[Line]:
    """Run the script; returns the lines of its table."""
    given = options().parse_args(arguments)
    return run(make_task(given), given)


if __name__ == "__main__":
    run_script(main)
