"""Recurrent models of which units were removed: checkpoints and packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import sparse_engine as se
from sparse_engine.io import load_pretrained, save_checkpoint
from sparse_engine.models.rnn import RnnConfig, RnnForCausalLM, RnnForTokenClassification

torch.set_num_threads(1)
IDS = torch.arange(18).reshape(2, 9)
CASES: list[tuple[Any, dict[str, Any]]] = [
    (RnnForTokenClassification, {"bidirectional": True, "num_hidden_layers": 2}),
    (RnnForTokenClassification, {"inner_sizes": (30,), "cell": "gru"}),
    (RnnForCausalLM, {"cell": "rnn_tanh"}),
    (RnnForCausalLM, {"cutoffs": (20, 50)}),
]


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_round_trip(cls: Any, options: dict[str, Any], share: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RnnConfig(vocab_size=100, embedding_size=16, hidden_size=22, **options)
    model = cls(config).eval().requires_grad_(False)
    model.save_pretrained(tmp_path / "hf")
    if share:
        report = se.prune(model, share, se.Unit(keep=2), "magnitude")
        assert any(len(site.kept) < site.groups for site in report.sites)
    save_checkpoint(model, tmp_path / "cut", tmp_path / "hf", {})
    loaded: Any = load_pretrained(tmp_path / "cut")[0]
    assert torch.equal(logits(loaded), logits(model))
    se.prune(loaded, 0.5)
    assert se.sparsify_(loaded, "csr").swapped
    se.save(loaded, tmp_path / "package", source=tmp_path / "cut")
    torch.testing.assert_close(logits(se.load(tmp_path / "package")), logits(loaded))


class Tagger(nn.Module):
    """A network whose width is no multiple of what kernels pad to."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 12, 2, bidirectional=True, batch_first=True)
        self.cell = nn.GRUCell(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.cell(self.lstm(x)[0][:, -1])
        return found


def test_whole_networks_with_padded_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Tagger().eval().requires_grad_(False), torch.randn(2, 5, 8)
    se.prune(model, 0.5)
    assert se.sparsify_(model, "csr").swapped
    se.save(model, tmp_path / "package")
    torch.testing.assert_close(se.load(tmp_path / "package", Tagger())(x), model(x))
