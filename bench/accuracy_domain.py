"""How far calibration texts may be from the texts that a model reads: all-MiniLM-L6-v2.

Cosines to the dense model on SICK and on Brown, calibrated on sentences of SICK, of Brown, of both,
on the built-in texts of `prune` with words of the vocabulary ("default") and without
("documentation"), and on a novel. The data folder holds match/sick/ (see
accuracy_sick.py), lm/brown/brown.{train,test}.txt (the Brown corpus, one sentence a line) and
lm/warandpeace/ with one text file.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy_rows import Setting
from accuracy_sick import Encoder, Sick
from torch import nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.text.built_in import sentences_of
from sparse_engine.text.calibration import Draw
from sparse_engine.text.sources import Source, built_in_source

TEST_SENTENCES = 1000  # of each
WORDS = 4  # fewest of a sentence of Brown


class Domain:
    """Mean cosines to the dense model on test sentences of SICK and of Brown.

    Args:
        data: folder of the data.
        encoder: the model.
    """

    name = "domain"
    calibrations = ("sick", "brown", "sick + brown", "default", "documentation", "War and Peace")
    samples = 1000
    columns = ("sick", "brown")
    points = (("element", 0.7), ("4x1", 0.8))

    def __init__(self, data: Path, encoder: Encoder) -> None:
        self.encoder, self.dense, of_sick = encoder, encoder.dense, Sick(data, encoder)
        brown = data / "lm" / "brown"
        test = read_lines(brown / "brown.test.txt")
        self._test = {
            name: random.Random(0).sample(texts, min(TEST_SENTENCES, len(texts)))
            for name, texts in (("sick", of_sick.sentences), ("brown", test))
        }
        train = sorted(set(read_lines(brown / "brown.train.txt")) - set(test))
        novels = sorted((data / "lm" / "warandpeace").glob("*.txt"))
        if not novels:
            raise InvalidFileError(f"{data}/lm/warandpeace has no text file")
        novel = list(sentences_of(novels[0].read_text(encoding="utf-8-sig")))
        sick, others = Source("sick", tuple(of_sick.pool)), Source("brown", tuple(train))
        self._sources = {
            "sick": [sick],
            "brown": [others],
            "sick + brown": [sick, others],
            "default": [built_in_source()],
            "documentation": [replace(built_in_source(), variable=False)],
            "War and Peace": [Source("novel", tuple(dict.fromkeys(novel)))],
        }
        self._truth = {name: encoder.embed(self.dense, t) for name, t in self._test.items()}

    def arguments(self, setting: Setting) -> dict[str, Any]:
        """Arguments of `prune`."""
        sources = self._sources[setting.calibration]
        draw = Draw(sources, setting.samples, seed=setting.seed)
        batches, _ = draw.batches(self.encoder.folder, self.dense)
        return {"calibration": batches}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures of a model in torch."""
        figures = {}
        for name, texts in self._test.items():
            found = self.encoder.embed(model, texts)
            figures[name] = round(float((found * self._truth[name]).sum(1).mean()), 4)
        return figures


def read_lines(path: Path) -> list[str]:
    """Sentences of a file, sorted, each once."""
    lines = {line.strip() for line in path.read_text().splitlines()}
    return sorted(line for line in lines if len(line.split()) >= WORDS)
