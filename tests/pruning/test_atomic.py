"""An error or an interrupt at any place leaves the model as it was before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from calibration_models import bert
from driver_models import bert_batches
from torch import nn
from torch.nn.utils import prune as torch_prune
from untouched import Picture, calls_of

import sparse_engine as se
from sparse_engine.errors import UsageError

pytest.importorskip("transformers")
torch.set_num_threads(1)

HEADS = {"granularity": ["head", "unit(keep=4)"], "sparsity": 0.5, "criterion": "obs"}
BLOCKS = {"granularity": "4x1", "sparsity": 0.5, "criterion": "sparsegpt"}
PLACES = 8  # calls that fail, evenly over all of them


class Tagger(nn.Module):
    """A convolution whose weight is in pieces, and an LSTM: both are unrolled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.conv.weight = nn.Parameter(torch.randn(3, 8, 8).permute(2, 1, 0))
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.lstm(self.conv(x).mT)[0]
        return y


def cut_bert() -> tuple[nn.Module, Callable[[nn.Module], object]]:
    model = bert()
    torch_prune.l1_unstructured(model.encoder.layer[0].output.dense, "weight", 0.3)
    return model, lambda model: se.prune(
        model, steps=[HEADS, BLOCKS], recovery="least_squares", calibration=bert_batches()
    )


def tagger() -> tuple[nn.Module, Callable[[nn.Module], object]]:
    batches = [torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))]
    return Tagger(), lambda model: se.prune(model, 0.5, "element", "wanda", "bias", batches)


@pytest.mark.parametrize("case", [cut_bert, tagger])
def test_an_interrupt_at_any_call(case: Any) -> None:
    model, run = case()
    count = calls_of(lambda: run(model))
    model, run = case()
    before = Picture(model)
    for place in range(1, PLACES + 1):
        with pytest.raises(KeyboardInterrupt):
            calls_of(lambda: run(model), fails_at=max(place * count // PLACES - 5, 1))
        before.check(model)
    run(model)
    with pytest.raises(AssertionError):
        before.check(model)


@pytest.mark.parametrize(
    "function",
    [
        "sparse_engine.structures.resize.linear.resize",
        "sparse_engine.pruning.driver.fold_",
        "sparse_engine.pruning.driver.set_zeros",
        "sparse_engine.pruning.zeros.add_coverage",
        "sparse_engine.pruning.driver.recipe_of_steps",
    ],
)
def test_an_error_in_this_function(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = cut_bert()
    before = Picture(model)

    def broken(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(function, broken)
    with pytest.raises(MemoryError):
        run(model)
    before.check(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"granularity": "head", "sparsity": 0.5, "layers": ["nothing"]}, "matches no layer"),
        ({"granularity": "unit", "sparsity": 0.5, "criterion": "obs", "calibration": []}, "empty"),
        ({"granularity": "512x1", "sparsity": 0.5}, "fits no layer"),
        ({"steps": [HEADS, BLOCKS | {"granularity": "40x1"}]}, "step 2: granularity 40x1 fits no"),
    ],
)
def test_a_refusal_leaves_masks_as_they_are(arguments: dict[str, Any], message: str) -> None:
    model, _ = cut_bert()
    before = Picture(model)
    with pytest.raises(UsageError, match=message):
        se.prune(model, **{"calibration": bert_batches(), **arguments})
    before.check(model)
