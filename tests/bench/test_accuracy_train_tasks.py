"""Models, inputs and recipes of the tables train-*, on made-up data."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # as Python does for a script

import accuracy_stories
import accuracy_train
from accuracy_cases import tiny_encoder, write_brown, write_sick, write_stories, write_tagger
from accuracy_methods import METHODS, TrainMethods
from accuracy_train import TrainSetting
from accuracy_train_tasks import TrainSick, TrainStories, TrainTagger


def first(batches: Iterator[Any], count: int) -> list[Any]:
    return list(islice(batches, count))


def test_sick_mixes_both_corpora_and_reads_no_test_sentence(tmp_path: Path) -> None:
    write_sick(tmp_path, random.Random(0))
    write_brown(tmp_path, random.Random(1))
    encoder = tiny_encoder(tmp_path / "model")
    task = TrainSick(tmp_path, encoder)
    assert task.evaluate(task.dense)["brown"] == 1.0
    words = encoder.batches([*task.base.pool, *task.brown])
    known = {tuple(row.tolist()) for batch in words for row in batch["input_ids"]}
    setting = replace(task.settings()[2], batch=4, steps=3)
    assert setting.training == "hold"
    for batch in first(task.batches(setting), 40):
        assert {tuple(row.tolist()) for row in batch["input_ids"]} <= known
        assert batch["attention_mask"].all()  # all of six words
    model = accuracy_train.pruned(task, replace(setting, criterion="magnitude", recovery="none"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    accuracy_train.train(task, model, setting)
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("embeddings.", "pooler."))
        assert torch.equal(parameter, before[name]) == frozen, name


@pytest.mark.parametrize("granularity", ["element", "4x1"])
@pytest.mark.parametrize(("criterion", "training"), METHODS)
def test_every_method_trains_a_tagger(
    tmp_path: Path, granularity: str, criterion: str, training: str
) -> None:
    write_tagger(tmp_path)
    task = TrainMethods(tmp_path)
    settings = [s for s in task.settings() if (s.criterion, s.training) == (criterion, training)]
    setting = next(s for s in settings if s.granularity == granularity)
    model = accuracy_train.pruned(task, accuracy_train.one_shot(setting))
    setting = replace(setting, batch=2, steps=20, samples=min(setting.samples, 3))
    found = accuracy_train.train(task, model, setting)
    zeros, weights = 0, 0
    for name, parameter in model.rnn.named_parameters():
        if "weight" in name:
            zeros += int((parameter == 0).sum())
            weights += parameter.numel()
    assert found["reached"] == pytest.approx(zeros / weights, abs=1e-4)
    if criterion != "soft_movement":  # whose sparsity is learned
        assert found["reached"] == pytest.approx(setting.sparsity, abs=0.05)
    assert bool(model.classifier.weight.all())


def test_the_tagger_is_trained_on_sentences_outside_of_the_test(tmp_path: Path) -> None:
    write_tagger(tmp_path)
    task = TrainTagger(tmp_path)
    setting = replace(task.settings()[2], batch=2)
    batches = first(task.batches(setting), 2)
    rows = [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(rows) == sorted(tuple(sentence.ids) for sentence in task.base.pool)


def test_stories_are_read_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_stories, "TEST_TEXTS", 3)
    monkeypatch.setattr(accuracy_stories, "LENGTH", 6)
    monkeypatch.setattr(TrainStories, "texts", 8)
    write_stories(tmp_path)
    task = TrainStories(tmp_path)
    setting = TrainSetting("obs", "none", "element", 0.5, "own texts", 2)
    setting = replace(setting, batch=4, steps=2, rate=1e-3)
    batches = [batch["input_ids"] for batch in first(task.batches(setting), 2)]
    assert [len(batch) for batch in batches] == [4, 4]
    written = accuracy_stories.write_texts(task.dense, 8, 0)
    assert sorted(torch.cat(batches).tolist()) == sorted(written.tolist())
    model = accuracy_train.pruned(task, replace(setting, training="none", criterion="magnitude"))
    head: nn.Parameter = model.lm_head.weight
    before = head.detach().clone()
    accuracy_train.train(task, model, replace(setting, training="hold"))
    assert not torch.equal(head, before)  # the head is the embedding, which is trained and kept
    assert bool(head.all())
