"""Models of texts in plain torch: encoders, and the classifier, matcher and translator on them.

Ids are int64 [texts, length], padded with 0 on the right.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 0
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def embeddings(words: int, size: int) -> nn.Embedding:
    """Small random embeddings: filters of words that were seen once do not fit large ones."""
    found = nn.Embedding(words, size, padding_idx=PADDING)
    nn.init.normal_(found.weight, std=0.1)
    with torch.no_grad():
        found.weight[PADDING] = 0
    return found


def largest(x: Tensor, ids: Tensor) -> Tensor:
    """The maximum of features [texts, length, features] over the words that are none of padding."""
    return x.masked_fill((ids == PADDING)[..., None], -torch.inf).amax(1)


class RecurrentEncoder(nn.Module):
    """A recurrent network over word embeddings; of each unit the largest state."""

    def __init__(self, words: int, size: int, cell: str) -> None:
        super().__init__()
        self.embedding = embeddings(words, size // 2)
        self.network = CELLS[cell](size // 2, size, batch_first=True)
        self.features = size

    def forward(self, ids: Tensor) -> Tensor:
        """Features [texts, size]."""
        return largest(self.network(self.embedding(ids))[0], ids)


class ConvolutionalEncoder(nn.Module):
    """Filters of several widths, and the largest response of each (Kim 2014, arXiv:1408.5882)."""

    def __init__(self, words: int, size: int, widths: tuple[int, ...] = (3, 5, 7)) -> None:
        super().__init__()
        self.embedding = embeddings(words, size // 2)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(size // 2, size // 2, width, padding=width // 2) for width in widths
        )
        self.features = size // 2 * len(widths)

    def forward(self, ids: Tensor) -> Tensor:
        """Features [texts, features]."""
        x = self.embedding(ids).transpose(1, 2)
        responses = torch.cat([F.relu(layer(x)) for layer in self.convolutions], 1)
        return largest(responses.transpose(1, 2), ids)


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), as in He et al. 2016, arXiv:1603.05027."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv1d(size, size, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features [texts, size, length]; the mask [texts, 1, length] is 0 at padding."""
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(F.relu(norm(y)) * mask)
        return x + y


class ResidualEncoder(nn.Module):
    """Residual blocks of convolutions over word embeddings, and the maximum over time."""

    def __init__(self, words: int, size: int, blocks: int = 3) -> None:
        super().__init__()
        self.embedding = embeddings(words, size // 2)
        self.stem = nn.Conv1d(size // 2, size // 2, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(size // 2) for _ in range(blocks))
        self.features = size // 2

    def forward(self, ids: Tensor) -> Tensor:
        """Features [texts, size / 2]."""
        mask = (ids != PADDING)[:, None].float()
        x = self.stem(self.embedding(ids).transpose(1, 2))
        for block in self.blocks:
            x = block(x, mask)
        return largest(F.relu(x).transpose(1, 2), ids)


def encoder(kind: str, words: int, size: int) -> nn.Module:
    """The encoder of a name: rnn, lstm, gru, cnn or resnet."""
    if kind in CELLS:
        return RecurrentEncoder(words, size, kind)
    return ConvolutionalEncoder(words, size) if kind == "cnn" else ResidualEncoder(words, size)


class TextClassifier(nn.Module):
    """Logits of the classes of a text."""

    def __init__(self, kind: str, words: int, labels: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder(kind, words, size)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(self.encoder.features, labels)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [texts, labels]."""
        return self.classifier(self.dropout(self.encoder(input_ids)))


class PairClassifier(nn.Module):
    """Logits of the classes of two texts, which one encoder reads."""

    def __init__(self, kind: str, words: int, labels: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder(kind, words, size)
        self.hidden = nn.Linear(4 * self.encoder.features, size)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(size, labels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits [pairs, labels]."""
        a, b = self.encoder(first), self.encoder(second)
        hidden = F.relu(self.hidden(torch.cat([a, b, (a - b).abs(), a * b], 1)))
        return self.classifier(self.dropout(hidden))


class Translator(nn.Module):
    """GRU encoder and decoder with attention (Luong et al. 2015, arXiv:1508.04025)."""

    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        self.embedding = embeddings(words, size // 2)
        self.encoder = nn.GRU(size // 2, size // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(size // 2, size, batch_first=True)
        self.keys = nn.Linear(size, size, bias=False)
        self.hidden = nn.Linear(2 * size, size)
        self.words = nn.Linear(size, words)

    def forward(self, source: Tensor, previous: Tensor) -> Tensor:
        """Logits [texts, length, words] of the word after each of `previous`."""
        memory, last = self.encoder(self.embedding(source))
        first = torch.cat([last[0], last[1]], 1)[None]
        states, _ = self.decoder(self.embedding(previous), first)
        scores = states @ self.keys(memory).transpose(1, 2)
        weights = scores.masked_fill((source == PADDING)[:, None], -torch.inf).softmax(2)
        return self.words(torch.tanh(self.hidden(torch.cat([weights @ memory, states], 2))))
