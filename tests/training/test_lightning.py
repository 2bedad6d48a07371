"""PrunerCallback in a Lightning Trainer, against a loop by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training_models import batches, gradual, network, squared, train

from sparse_engine.training import Pruner

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer

from sparse_engine.training.lightning import PrunerCallback


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        recipe = [*gradual(criterion="random", end=16, every=4), {"distil": {}}]
        self.pruner = Pruner(self.model, recipe, teacher=network(), loss=squared)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.pruner.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)


def loader() -> Any:
    x, y = (torch.cat(parts) for parts in zip(*batches(12), strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit(module: Module, folder: Path, path: Any = None, **options: Any) -> Any:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PrunerCallback(module.pruner)],
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=path)
    return trainer


def by_hand() -> Any:
    """Two epochs."""
    expected = Module()
    optimizer = expected.configure_optimizers()
    train(expected.pruner, optimizer, 2 * batches(12))
    return expected.model


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_trains_what_a_loop_trains(tmp_path: Path, precision: Any) -> None:
    module = Module()
    fit(module, tmp_path, max_epochs=2, precision=precision, enable_checkpointing=False)
    assert module.pruner.steps == 24
    module.pruner.finalize()
    assert (module.model[0].weight == 0).float().mean() == pytest.approx(0.8, abs=0.01)
    if precision == "32-true":
        for a, b in zip(module.model.parameters(), by_hand().parameters(), strict=True):
            assert torch.equal(a, b)


def test_accumulated_gradients_are_one_step(tmp_path: Path) -> None:
    module = Module()
    fit(module, tmp_path, max_epochs=1, accumulate_grad_batches=3, enable_checkpointing=False)
    assert module.pruner.steps == 4


def test_a_checkpoint_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    stopped = Module()
    trainer = fit(stopped, tmp_path, max_epochs=1)
    path = tmp_path / "stopped.ckpt"
    trainer.save_checkpoint(path)
    again = Module()
    fit(again, tmp_path, str(path), max_epochs=2)
    assert again.pruner.steps == 24
    for a, b in zip(again.model.parameters(), by_hand().parameters(), strict=True):
        assert torch.equal(a, b)
