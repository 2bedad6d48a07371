"""Packages that an earlier release wrote load, verify and compute what they did then.

packages/0.1 holds what version 0.1.0 wrote: a BERT with layers of every format and dtype, and a
plain torch module with recurrent networks and a convolution. weights.json has the first 16 hex
digits of the SHA-256 of each layer's dense weight, outputs.safetensors what the models gave.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.io import inspect, verify

FOLDER = Path(__file__).parent / "packages" / "0.1"
# Of the largest output. int8 layers round activations, which another order of sums may turn over.
TOLERANCES = {"bert": 2e-2, "recurrent": 1e-5}


class Recurrent(nn.Module):
    """The module whose weights packages/0.1/recurrent holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.lstm = nn.LSTM(16, 20, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(40, 16, batch_first=True)
        self.head = nn.Linear(16, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        return self.head(self.gru(self.lstm(x)[0])[0])


def loaded(name: str) -> nn.Module:
    if name == "bert":
        pytest.importorskip("transformers")
        return se.load(FOLDER / name)
    return se.load(FOLDER / name, model=Recurrent().eval())


def output(name: str, model: nn.Module) -> Tensor:
    with torch.inference_mode():
        if name == "recurrent":
            y: Any = model(torch.arange(22).reshape(2, 11) % 30)
            return y
        ids = torch.arange(40).reshape(2, 20) % 60
        mask = torch.ones_like(ids)
        mask[1, 15:] = 0
        y = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return y


@pytest.mark.parametrize("name", ["bert", "recurrent"])
def test_weights_and_outputs_are_what_they_were(name: str) -> None:
    model = loaded(name)
    digests = {
        path: hashlib.sha256(
            layer.packed.to_dense().contiguous().view(torch.uint8).numpy().tobytes()
        ).hexdigest()[:16]
        for path, layer in model.named_modules()
        if isinstance(layer, se.nn.SparseLinear)
    }
    assert digests == json.loads((FOLDER / "weights.json").read_text())[name]
    expected = load_file(FOLDER / "outputs.safetensors")[name]
    error = (output(name, model) - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[name]


@pytest.mark.parametrize("name", ["bert", "recurrent"])
def test_verify_and_inspect_read_them(name: str, tmp_path: Path) -> None:
    assert verify(FOLDER / name).tensors > 20
    assert len(inspect(FOLDER / name).rows) >= 10


@pytest.mark.parametrize("name", ["bert", "recurrent"])
def test_what_is_saved_anew_holds_the_same_tensors(name: str, tmp_path: Path) -> None:
    again = se.save(loaded(name), tmp_path / "again", source=FOLDER / name)
    old, new = (
        {entry["name"]: entry["sha256"] for entry in json.loads(text)["tensors"]}
        for text in (
            (FOLDER / name / "sparse_engine.json").read_text(),
            (again / "sparse_engine.json").read_text(),
        )
    )
    assert new == old
