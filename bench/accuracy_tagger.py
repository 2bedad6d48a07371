"""Test accuracy of a real BiLSTM tagger (g2pM, Park and Lee 2020), its LSTM weights pruned alone.

The data folder holds models/g2pM_bilstm/: what bench/tagger.py reads.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accuracy_rows import Setting
from tagger import in_batches, predict, read_sentences, read_tagger
from torch import nn


class Tagger:
    """Share of the test sentences, in per cent, whose marked character gets its label.

    Args:
        data: folder of the data.
    """

    name = "tagger"
    calibrations = ("dev",)
    samples = 3000
    columns = ("accuracy",)
    points = tuple(product(("element", "4x1", "16x1"), (0.5, 0.7, 0.8, 0.9)))

    def __init__(self, data: Path) -> None:
        folder = data / "models" / "g2pM_bilstm"
        self.dense = read_tagger(folder)
        test = read_sentences(folder, "test")
        seen = {tuple(sentence.ids) for sentence in test}
        dev = read_sentences(folder, "dev")
        self.pool = [sentence for sentence in dev if tuple(sentence.ids) not in seen]
        self.test = in_batches(test)
        self._labels = torch.cat([batch.labels for batch in self.test])

    def arguments(self, setting: Setting) -> dict[str, Any]:
        """Arguments of `prune`: sentences of dev that are not in the test set; the LSTM alone."""
        samples = min(setting.samples, len(self.pool))
        chosen = random.Random(setting.seed).sample(self.pool, samples)
        return {
            "calibration": [
                {"input_ids": b.ids, "attention_mask": b.mask} for b in in_batches(chosen)
            ],
            "filter_fn": lambda module, name: name.startswith("rnn."),
        }

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of a model in torch."""
        found, _ = predict(model, self.test)
        right = (found == self._labels).double().mean()
        return {"accuracy": round(100 * float(right), 2)}
