"""A real BiLSTM tagger (g2pM, Chinese polyphones; Park, Lee 2020): dense, converted and pruned.

    python bench/tagger.py FOLDER -o bench/results/tagger.jsonl

FOLDER is what github.com/kakaobrain/g2pM publishes: g2pM.npz with the weights, char2idx.json and
class2idx.json, and its data cpp_dataset/{dev,test}.{sent,lb}. Converted without pruning the tagger
must give the same labels. Then the network and the layer behind it are pruned in one shot: by
magnitude, and with SparseGPT and least squares calibrated on about a thousand dev sentences.
Accuracy is measured on the test sentences; nothing is trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparse_engine import prune
from sparse_engine.bench.machine import conditions
from sparse_engine.bench.output import render
from sparse_engine.cli.common import progress_bar, run_script, split
from sparse_engine.config import SparseConfig
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.text.batches import padded

BEGIN, END, MARK, UNKNOWN = "시", "끝", "▁", "<UNK>"
BATCH, CALIBRATION = 64, 1024  # sentences


@dataclass(frozen=True)
class Row:
    """One way to run the tagger over the test sentences."""

    model: str
    sparsity: float
    accuracy: float
    same_as_dense: float
    seconds: float


@dataclass(frozen=True)
class Batch:
    """Sentences of similar length, padded on the right.

    Attributes:
        ids: Token ids [sentences, length].
        mask: 1 for tokens, 0 for padding.
        positions: Position of the labelled character in each sentence.
        labels: Its label.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor


def read_tagger(folder: Path) -> nn.Module:
    """The tagger as a model of sparse_engine.models.rnn."""
    from sparse_engine.models.rnn import RnnConfig, RnnForTokenClassification

    with np.load(folder / "g2pM.npz", allow_pickle=False) as file:
        given = {name: torch.from_numpy(file[name]) for name in file.files}
    words, width = given["embedding.weight"].shape
    labels, inner = given["logit_layer.2.weight"].shape
    config = RnnConfig(
        vocab_size=words,
        embedding_size=width,
        hidden_size=given["lstm.weight_hh_l0"].shape[1],
        bidirectional=True,
        inner_sizes=(inner,),
        num_labels=labels,
    )
    model = RnnForTokenClassification(config).eval().requires_grad_(False)
    names = {"lstm.": "rnn.", "logit_layer.0.": "inner.0.", "logit_layer.2.": "classifier."}
    renamed = {}
    for name, tensor in given.items():
        old = next((prefix for prefix in names if name.startswith(prefix)), "")
        renamed[names.get(old, "") + name.removeprefix(old)] = tensor
    model.load_state_dict(renamed)
    return model


class Sentence(NamedTuple):
    """Token ids of a sentence, the position of its labelled character, and the label."""

    ids: list[int]
    position: int
    label: int


def read_sentences(folder: Path, part: str) -> list[Sentence]:
    """The sentences of "dev" or "test"."""
    words = json.loads((folder / "char2idx.json").read_text())
    labels = json.loads((folder / "class2idx.json").read_text())
    texts = (folder / "cpp_dataset" / f"{part}.sent").read_text().splitlines()
    answers = (folder / "cpp_dataset" / f"{part}.lb").read_text().split()
    if len(texts) != len(answers):
        raise InvalidFileError(f"{folder}: {part} has {len(texts)} texts, {len(answers)} labels")
    sentences = []
    for text, answer in zip(texts, answers, strict=True):
        position = text.index(MARK) + 1  # BEGIN replaces the mark
        characters = [BEGIN, *text.replace(MARK, ""), END]
        ids = [words.get(character, words[UNKNOWN]) for character in characters]
        sentences.append(Sentence(ids, position, labels[answer]))
    return sentences


def in_batches(sentences: Iterable[Sentence], size: int = BATCH) -> list[Batch]:
    """Batches of sentences of like length."""
    rows = sorted(sentences, key=lambda sentence: len(sentence.ids))
    return [_batch(rows[i : i + size]) for i in range(0, len(rows), size)]


def _batch(rows: list[Sentence]) -> Batch:
    ids, mask = padded([row.ids for row in rows], 0)
    positions = torch.tensor([row.position for row in rows])
    labels = torch.tensor([row.label for row in rows])
    return Batch(ids, mask, positions, labels)


@torch.inference_mode()
def predict(model: nn.Module, batches: list[Batch]) -> tuple[Tensor, float]:
    """The label of each sentence, and the seconds that all took."""
    found, start = [], perf_counter()
    for batch in batches:
        logits: Any = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        found.append(logits[torch.arange(len(logits)), batch.positions].argmax(-1))
    return torch.cat(found), perf_counter() - start


def measure(folder: Path, sparsities: tuple[float, ...]) -> Iterator[Row]:
    """Dense, converted, and pruned at each sparsity by both methods."""
    test = in_batches(read_sentences(folder, "test"))
    dev = in_batches(read_sentences(folder, "dev"))
    some = dev[:: max(1, len(dev) * BATCH // CALIBRATION)]  # of all lengths
    calibration = [{"input_ids": b.ids, "attention_mask": b.mask} for b in some]
    truth = torch.cat([batch.labels for batch in test])
    dense, seconds = predict(read_tagger(folder), test)

    def row(name: str, sparsity: float, found: Tensor, seconds: float) -> Row:
        right, same = (found == truth).float().mean(), (found == dense).float().mean()
        return Row(name, sparsity, round(float(right), 4), round(float(same), 4), round(seconds, 2))

    yield row("torch, dense", 0.0, dense, seconds)
    yield row("converted", 0.0, *predict(_converted(read_tagger(folder)), test))
    for sparsity in sparsities:
        for name, arguments in (
            ("magnitude", {"criterion": "magnitude"}),
            (
                "sparsegpt + least_squares",
                {"criterion": "sparsegpt", "recovery": "least_squares", "calibration": calibration},
            ),
        ):
            model = read_tagger(folder)
            prune(model, sparsity, **arguments)  # type: ignore[arg-type]
            yield row(name, sparsity, *predict(_converted(model), test))


def _converted(model: nn.Module) -> nn.Module:
    """The same with all of its weights in sparse layers, however few their zeros are."""
    from sparse_engine.nn import SparseLSTM

    model.rnn = SparseLSTM.from_dense(model.rnn, SparseConfig("csr"))  # type: ignore[arg-type]
    sparsify_(model, SparseConfig("csr"))
    return model


def main() -> None:
    """Measure, print a table, write JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sparsity", default="0.5,0.7,0.8", help="fractions of zeros")
    parser.add_argument("-o", "--out", type=Path, help="JSON lines")
    given = parser.parse_args()
    if not (given.folder / "g2pM.npz").is_file():
        raise UsageError(f"{given.folder}: has no g2pM.npz; see --help for what the folder holds")
    sparsities = split(given.sparsity, float, "--sparsity")
    rows = []
    with progress_bar("tagger") as report:
        for row in measure(given.folder, sparsities):
            rows.append(row)
            report(len(rows), 2 + 2 * len(sparsities), f"{row.model} {row.sparsity:.0%}")
    print(render(rows, "md"))
    if given.out:
        lines = [{"conditions": conditions()}, *map(asdict, rows)]
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    run_script(main)
