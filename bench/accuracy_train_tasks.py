"""Models and inputs of the tasks train-*: those of the one-shot tables, trained without labels."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from accuracy_domain import TEST_SENTENCES, read_lines
from accuracy_rows import Setting
from accuracy_sick import Encoder, Sick
from accuracy_stories import Stories, write_texts
from accuracy_tagger import Tagger
from accuracy_train import TrainSetting
from tagger import in_batches
from torch import Tensor, nn

from sparse_engine.text.batches import padded
from sparse_engine.text.tokenizer import encode, load_tokenizer

MIXED = 16  # batches of which texts of like length are put together


class TrainedTask:
    """The rows of a task: each point in one shot, and trained; random weights as a control."""

    name: str
    base: Any
    calibration: str
    points: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...] = (0, 1)
    steps: int
    batch: int
    rate: float
    distil: ClassVar[dict[str, Any]]
    layers: tuple[str, ...] = ()
    bfloat16 = False

    @property
    def dense(self) -> Any:
        return self.base.dense

    def settings(self) -> list[TrainSetting]:
        """The dense model, then every point."""
        found = [TrainSetting()]
        for granularity, sparsity in self.points:
            for criterion in ("obs", "random"):
                for seed in self.seeds if criterion == "obs" else self.seeds[:1]:
                    start = TrainSetting(
                        criterion,
                        "least_squares",
                        granularity,
                        sparsity,
                        self.calibration,
                        self.base.samples,
                        seed,
                    )
                    after = {"steps": self.steps, "batch": self.batch, "rate": self.rate}
                    found += [start, replace(start, training="hold", **after)]
        return found

    def arguments(self, setting: Setting) -> dict[str, Any]:
        """Arguments of `prune`."""
        return self.base.arguments(setting)

    def recipe(self, setting: TrainSetting) -> list[dict[str, Any]]:
        """The modifiers of a training."""
        prune = {
            "sparsity": setting.sparsity,
            "granularity": setting.granularity,
            "criterion": setting.criterion,
            "recovery": setting.recovery,
            "layers": self.layers,
            "end": setting.steps // 2,
            "every": max(setting.steps // 20, 1),
        }
        first = {"hold": [{"hold": {}}], "distil": [], "gradual": [{"prune": prune}]}
        return [*first[setting.training], {"distil": self.distil}]

    def trained(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that are trained; the others are frozen."""
        model.requires_grad_(True)
        return list(model.parameters())

    def timed(self, model: nn.Module) -> nn.Module:
        """A model as it runs where it is used."""
        return model

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures of a model in torch."""
        return self.base.evaluate(model)


class TrainSick(TrainedTask):
    """all-MiniLM-L6-v2 on sentences of SICK and of Brown, in equal parts, embeddings frozen.

    Beside the figures of SICK there is the mean cosine to the dense model on test sentences of
    Brown, which the pruning in one shot does not see.

    Args:
        data: folder of the data.
        encoder: the model.
    """

    name, calibration = "train-sick", "sick"
    columns = ("rho", "cosine", "brown")
    points = (("element", 0.9), ("4x1", 0.8), ("4x1", 0.9), ("16x1", 0.8))
    steps, batch, rate = 600, 32, 2e-3
    distil: ClassVar[dict[str, Any]] = {"outputs": 1.0, "hidden": 1.0}
    tokens, longest, bfloat16 = 128, 64, True

    def __init__(self, data: Path, encoder: Encoder) -> None:
        self.base = Sick(data, encoder)
        # The fused attention of torch has a slow gradient on a CPU.
        encoder.dense.set_attn_implementation("eager")
        test = read_lines(data / "lm/brown/brown.test.txt")
        self.brown = sorted(set(read_lines(data / "lm/brown/brown.train.txt")) - set(test))
        self._test = random.Random(0).sample(test, min(TEST_SENTENCES, len(test)))
        self._truth = encoder.embed(encoder.dense, self._test)

    def trained(self, model: nn.Module) -> list[nn.Parameter]:
        super().trained(model)
        model.embeddings.requires_grad_(False)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def batches(self, setting: TrainSetting) -> Iterator[dict[str, Tensor]]:
        """Half of the sentences are those of SICK that may be read, the others those of Brown."""
        tokenizer = load_tokenizer(self.base.encoder.folder)
        source = random.Random(setting.seed)
        half = MIXED * setting.batch // 2
        while True:
            texts = [
                *source.choices(self.base.pool, k=half),
                *source.choices(self.brown, k=half),
            ]
            ids = [encoding.ids for encoding in encode(tokenizer, texts)]
            rows = [[*row[:-1][: self.longest - 1], row[-1]] for row in ids]
            for batch in by_length(rows, setting.batch, source):
                padded_ids, mask = padded(batch, 0)
                yield {"input_ids": padded_ids, "attention_mask": mask}

    def timed(self, model: nn.Module) -> nn.Module:
        model = copy.deepcopy(model)
        model.set_attn_implementation("sdpa")
        return model

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        found = self.base.encoder.embed(model, self._test)
        cosine = float((found * self._truth).sum(1).mean())
        return self.base.evaluate(model) | {"brown": round(cosine, 4)}


class TrainTagger(TrainedTask):
    """The tagger g2pM on sentences of dev that are not in the test set.

    Args:
        data: folder of the data.
    """

    name, calibration = "train-tagger", "dev"
    columns = Tagger.columns
    points = tuple(
        (name, sparsity) for name in ("element", "4x1", "16x1") for sparsity in (0.7, 0.8, 0.9)
    )
    steps, batch, rate = 1500, 64, 1e-2
    distil: ClassVar[dict[str, Any]] = {}
    layers = ("rnn",)
    tokens = 128

    def __init__(self, data: Path) -> None:
        self.base = Tagger(data)

    def batches(self, setting: TrainSetting) -> Iterator[dict[str, Tensor]]:
        """Sentences of dev."""
        source = random.Random(setting.seed)
        while True:
            for batch in by_length(self.base.pool, setting.batch, source, lambda row: row.ids):
                [found] = in_batches(batch, setting.batch)
                yield {"input_ids": found.ids, "attention_mask": found.mask}


class TrainStories(TrainedTask):
    """stories260K on texts that the dense model wrote itself.

    Args:
        data: folder of the data.
    """

    name, calibration = "train-stories", "own texts"
    columns = Stories.columns
    points = Stories.points
    steps, batch, rate = 400, 16, 5e-3
    distil: ClassVar[dict[str, Any]] = {}
    tokens = 128
    texts = 1024

    def __init__(self, data: Path) -> None:
        self.base = Stories(data)

    def batches(self, setting: TrainSetting) -> Iterator[dict[str, Tensor]]:
        """Texts, none of them twice before all of them were read."""
        texts = _written(self.dense, self.texts, setting.seed)
        source = torch.Generator().manual_seed(setting.seed)
        while True:
            order = torch.randperm(len(texts), generator=source)
            for part in order.split(setting.batch):
                yield {"input_ids": texts[part]}


@cache
def _written(model: Any, texts: int, seed: int) -> Tensor:
    return write_texts(model, texts, seed)


def by_length(
    rows: Sequence[Any], batch: int, source: random.Random, ids: Any = lambda row: row
) -> Iterator[list[Any]]:
    """All rows in batches of like length, in random order."""
    order = sorted(source.sample(list(rows), len(rows)), key=lambda row: len(ids(row)))
    parts = [order[i : i + batch] for i in range(0, len(order), batch)]
    source.shuffle(parts)
    yield from parts
