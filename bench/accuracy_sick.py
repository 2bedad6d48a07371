"""SICK relatedness (Marelli et al. 2014) with all-MiniLM-L6-v2, and cosines to the dense model.

The data folder holds match/sick/SICK_train.txt and SICK_test_annotated.txt, as they were published.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accuracy_rows import Setting
from scipy.stats import spearmanr
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.io import load_pretrained
from sparse_engine.tasks import Embedder
from sparse_engine.text.calibration import calibration_batches
from sparse_engine.text.tokenizer import load_tokenizer

BATCH = 128  # sentences of like length


class Encoder:
    """An encoder and the embeddings that it gives of sentences, each embedded once.

    Args:
        folder: a Hugging Face folder with a tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dense, _ = load_pretrained(folder)
        self.dense.requires_grad_(False)

    def embed(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings float32 [texts, hidden]."""
        return nn.functional.normalize(Embedder(model, self.folder, BATCH).embed(texts), dim=1)

    def batches(self, texts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Calibration inputs made of texts."""
        return calibration_batches(texts, load_tokenizer(self.folder), self.dense)


class Sick:
    """Pairs of sentences and how related people find them.

    `evaluate` gives Spearman's rho x 100 over the test pairs, and the mean cosine between the
    embeddings of the pruned and of the dense model over the distinct test sentences.

    Args:
        data: folder of the data.
        encoder: the model.
    """

    name = "sick"
    calibrations = ("sick",)
    samples = 1000
    columns = ("rho", "cosine")
    points = (
        *product(("element", "4x1", "8x1", "16x1", "32x1"), (0.5, 0.7, 0.8, 0.9)),
        ("16x32", 0.5),
        ("2:4", 0.5),
    )

    def __init__(self, data: Path, encoder: Encoder) -> None:
        folder = data / "match" / "sick"
        self.encoder, self.dense = encoder, encoder.dense
        pairs = read_pairs(folder / "SICK_test_annotated.txt")
        self.sentences = sorted({text for a, b, _ in pairs for text in (a, b)})
        place = {text: i for i, text in enumerate(self.sentences)}
        self._left = torch.tensor([place[a] for a, _, _ in pairs])
        self._right = torch.tensor([place[b] for _, b, _ in pairs])
        self._relatedness = [score for _, _, score in pairs]
        train = read_pairs(folder / "SICK_train.txt")
        self.pool = sorted({text for a, b, _ in train for text in (a, b)} - set(place))

    @cached_property
    def _truth(self) -> Tensor:
        return self.encoder.embed(self.dense, self.sentences)

    def texts(self, samples: int, seed: int) -> list[str]:
        """Sentences of train that do not occur in the test set."""
        return random.Random(seed).sample(self.pool, min(samples, len(self.pool)))

    def arguments(self, setting: Setting) -> dict[str, Any]:
        """Arguments of `prune`."""
        return {"calibration": self.encoder.batches(self.texts(setting.samples, setting.seed))}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures of a model in torch."""
        found = self.encoder.embed(model, self.sentences)
        similarity = (found[self._left] * found[self._right]).sum(1)
        rho = spearmanr(similarity.numpy(), self._relatedness).statistic
        return {
            "rho": round(100 * float(rho), 2),
            "cosine": round(float((found * self._truth).sum(1).mean()), 4),
        }


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Sentence, sentence and relatedness of each row of a SICK file.

    Raises:
        InvalidFileError: if the file has other columns, or a score is no number.
    """
    rows = csv.DictReader(path.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        return [
            (row["sentence_A"], row["sentence_B"], float(row["relatedness_score"])) for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidFileError(f"{path}: not a file of SICK: {error!r}") from None
