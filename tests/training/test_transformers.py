"""PrunerCallback and PrunerTrainer in a transformers.Trainer, against a loop by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.training import Pruner

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparse_engine.training.transformers import PrunerCallback, PrunerTrainer  # noqa: E402

PRUNE = {"prune": {"sparsity": 0.5, "end": 4, "every": 2}}
DISTIL = {"distil": {"temperature": 2.0}}


def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def rows(labelled: bool = True, count: int = 32) -> list[dict[str, Any]]:
    ids = torch.randint(1, 30, (count, 6), generator=torch.Generator().manual_seed(1))
    found: list[dict[str, Any]] = []
    for row in ids:
        found.append({"input_ids": row, "attention_mask": torch.ones_like(row)})
        if labelled:
            found[-1]["labels"] = row[0] % 2
    return found


class InOrder(torch.utils.data.IterableDataset[Any]):
    """Rows that the Trainer does not shuffle."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


def options(folder: Path, **changes: Any) -> Any:
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 0.01,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(**given | changes)


def by_hand(recipe: Any, data: list[dict[str, Any]], parts: int = 1) -> Any:
    model = classifier().train()
    pruner = Pruner(model, recipe, teacher=classifier())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(6):
        for part in range(parts):
            first = 4 * (step * parts + part) % len(data)
            chosen = data[first : first + 4]
            batch = {key: torch.stack([row[key] for row in chosen]) for key in chosen[0]}
            (pruner.loss(batch) / parts).backward()
        pruner.step(optimizer)
    pruner.finalize()
    return model


def same(a: Any, b: Any) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y)


def zeros(model: Any) -> Tensor:
    return model.bert.encoder.layer[0].attention.self.query.weight == 0


def test_the_callback_prunes_with_the_loss_of_the_trainer(tmp_path: Path) -> None:
    model = classifier()
    pruner = Pruner(model, [PRUNE])
    trainer = transformers.Trainer(
        model, options(tmp_path), train_dataset=InOrder(rows()), callbacks=[PrunerCallback(pruner)]
    )
    trainer.train()
    assert pruner.steps == 6
    assert pruner.finalize().sparsity
    assert zeros(model).float().mean() == 0.5
    same(model, by_hand([PRUNE], rows()))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_trainer_distils(tmp_path: Path, labelled: bool, parts: int) -> None:
    model = classifier()
    pruner = Pruner(model, [PRUNE, DISTIL], teacher=classifier())
    data = rows(labelled, 48)
    arguments = options(tmp_path, gradient_accumulation_steps=parts)
    trainer = PrunerTrainer(
        model, arguments, train_dataset=InOrder(data), eval_dataset=rows(count=8), pruner=pruner
    )
    trainer.train()
    assert pruner.steps == 6
    same(model, by_hand([PRUNE, DISTIL], data, parts))
    with torch.no_grad():
        expected = [model(**{k: v[None] for k, v in row.items()}).loss for row in rows(count=8)]
    loss = trainer.evaluate()["eval_loss"]
    assert loss == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_a_checkpoint_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    recipe = [{"prune": {"sparsity": 0.5, "end": 5, "every": 1, "criterion": "random"}}, DISTIL]
    whole = classifier()

    def trainer_of(model: Any, folder: Path, **changes: Any) -> Any:
        pruner = Pruner(model, recipe, teacher=classifier())
        changes = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 3} | changes
        return PrunerTrainer(
            model, options(folder, **changes), train_dataset=InOrder(rows()), pruner=pruner
        )

    trainer_of(whole, tmp_path / "whole").train()
    trainer_of(classifier(), tmp_path / "parts", max_steps=3).train()
    again = copy.deepcopy(classifier())
    trainer = trainer_of(again, tmp_path / "parts")
    trainer.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert trainer.pruner.steps == 6
    same(again, whole)
    (tmp_path / "parts" / "checkpoint-3" / "pruner.pt").write_bytes(b"damaged")
    broken = trainer_of(classifier(), tmp_path / "parts")
    with pytest.raises(InvalidFileError, match=r"pruner\.pt cannot be read"):
        broken.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
