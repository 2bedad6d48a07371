"""A convolutional classifier (Kim 2014, arXiv:1408.5882) trained on SST-2, and its filters cut.

The data folder holds cls/sst2/stsa.binary.{train,dev,test}: a label, a space and a tokenised
sentence a line (Socher et al. 2013). The model is trained for a few passes with random embeddings
and early stopping on dev; that takes about a minute. Calibration texts are those of train.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accuracy_rows import Setting
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import InvalidFileError

WIDTHS, FILTERS, FEATURES = (3, 4, 5), 100, 128
PASSES, BATCH, RATE = 8, 50, 1e-3
PADDING, UNKNOWN = 0, 1


class TextCNN(nn.Module):
    """Filters of several widths over word embeddings, the largest response of each, one layer."""

    def __init__(self, words: int, labels: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, FEATURES, padding_idx=PADDING)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(FEATURES, FILTERS, width, padding=width - 1) for width in WIDTHS
        )
        self.classifier = nn.Linear(len(WIDTHS) * FILTERS, labels)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [texts, labels] of ids [texts, length]."""
        x = self.embedding(ids).transpose(1, 2)
        pooled = [F.relu(convolution(x)).amax(2) for convolution in self.convolutions]
        return self.classifier(F.dropout(torch.cat(pooled, 1), 0.5, self.training))


class CutTextCNN:
    """Accuracy on the test sentences in per cent.

    Args:
        data: folder of the data.
    """

    name = "cut-textcnn"
    calibrations = ("train",)
    samples = 1000
    columns = ("accuracy",)
    methods = tuple(product(("random", "magnitude", "activation", "obs"), ("least_squares",)))
    points = (("filter(readers='convolutions.*: classifier')", 0.5),)

    def __init__(self, data: Path) -> None:
        folder = data / "cls" / "sst2"
        names = ("train", "dev", "test")
        parts = {part: read_rows(folder / f"stsa.binary.{part}") for part in names}
        words = sorted({word for _, sentence in parts["train"] for word in sentence})
        self._ids = {word: i for i, word in enumerate(words, 2)}
        self.train, dev, self.test = (
            [(label, self._encoded(sentence)) for label, sentence in parts[part]] for part in names
        )
        self.dense = trained(TextCNN(len(words) + 2), self.train, dev)

    def _encoded(self, sentence: list[str]) -> list[int]:
        return [self._ids.get(word, UNKNOWN) for word in sentence]

    def arguments(self, setting: Setting) -> dict[str, Any]:
        """Arguments of `prune`."""
        chosen = random.Random(setting.seed).sample(self.train, setting.samples)
        return {"calibration": [(ids,) for _, ids in batches(chosen)]}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures of a model in torch."""
        return {"accuracy": round(100 * accuracy(model, self.test), 2)}


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Label and words of each line; raises InvalidFileError."""
    rows = []
    for line in path.read_text().splitlines():
        label, _, sentence = line.partition(" ")
        if label not in ("0", "1"):
            raise InvalidFileError(f"{path}: expected lines of a label 0 or 1 and a sentence")
        rows.append((int(label), sentence.split()))
    return rows


def batches(rows: list[tuple[int, list[int]]]) -> list[tuple[Tensor, Tensor]]:
    """Labels and padded ids of texts of like length."""
    ordered = sorted(rows, key=lambda row: len(row[1]))
    found = []
    for first in range(0, len(ordered), BATCH):
        labels, texts = zip(*ordered[first : first + BATCH], strict=True)
        padded = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], True)
        found.append((torch.tensor(labels), padded))
    return found


@torch.inference_mode()
def accuracy(model: nn.Module, rows: list[tuple[int, list[int]]]) -> float:
    """Share of the texts whose label has the highest logit."""
    right = sum(int((model(ids).argmax(1) == labels).sum()) for labels, ids in batches(rows))
    return right / len(rows)


def trained(
    model: TextCNN, train: list[tuple[int, list[int]]], dev: list[tuple[int, list[int]]]
) -> TextCNN:
    """The model with the weights of the pass that was best on dev."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    best, state = 0.0, model.state_dict()
    for _ in range(PASSES):
        model.train()
        parts = batches(train)
        random.Random(0).shuffle(parts)
        for labels, ids in parts:
            optimiser.zero_grad()
            F.cross_entropy(model(ids), labels).backward()
            optimiser.step()
        found = accuracy(model.eval(), dev)
        if found > best:
            best = found
            state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
