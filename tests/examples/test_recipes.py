"""The recipes of examples/recipes train a tiny BERT, their epochs scaled down to two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertForSequenceClassification

from sparse_engine.training import Pruner, TrainingReport
from tests.support import tiny_bert

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))


def train(recipe: Path) -> tuple[Any, TrainingReport]:
    model, dense = (tiny_bert.build(BertForSequenceClassification) for _ in range(2))
    model.train()
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(50, (4, 6), generator=generator)} for _ in range(4)]
    if "distil" not in recipe.read_text():
        batches = [{**batch, "labels": torch.tensor([0, 1, 0, 1])} for batch in batches]
    pruner = Pruner(model, recipe, dense, calibration=batches, steps_per_epoch=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    while not pruner.is_done:
        pruner.loss(batches[pruner.steps % 4]).backward()
        pruner.step(optimizer)
    return model, pruner.finalize()


def test_there_are_six() -> None:
    names = ["acdc", "cut_then_prune", "gradual", "incremental", "obert", "rigl"]
    assert [path.stem for path in RECIPES] == names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_and_reaches_its_sparsity(path: Path) -> None:
    model, report = train(path)
    assert not report.warnings
    wanted = 0.8 if path.stem in ("incremental", "cut_then_prune") else 0.9
    assert report.events[-1].sparsity == pytest.approx(wanted, abs=0.02)
    zeros = {name: weight.eq(0).float().mean() for name, weight in model.named_parameters()}
    for layer, sparsity in report.sparsity.items():
        assert zeros[f"{layer}.weight"] == pytest.approx(sparsity, abs=1e-6)
    heads = model.bert.encoder.layer[0].attention.self.query.out_features // 8
    assert heads == (2 if path.stem == "cut_then_prune" else 4)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_begins_with_when_to_use_it(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(comments) >= 4
    assert any(line.startswith("# For ") or "first recipe to try" in line for line in comments)
