"""What is left of attention heads, counted by hand in a dense model with heads set to zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibration_models import bert
from pruning_models import of
from torch import nn

from sparse_engine.pruning import prune
from sparse_engine.pruning.heads import heads_of


def test_a_removed_head_keeps_nothing() -> None:
    model: Any = bert()
    attention = model.encoder.layer[1].attention
    attention.self.query.weight[8:] = 0
    attention.output.dense.weight[:, 8:] = 0
    attention.output.dense.weight[:8, :8] = 0
    first, second = heads_of(model)
    assert first.name == "encoder.layer.0.attention.self.query"
    assert first.kept == (1.0, 1.0)
    assert second.kept == pytest.approx((0.75, 0.0))


@pytest.mark.parametrize(
    ("architecture", "attentions", "heads"),
    [("gpt2", 2, 2), ("t5", 6, 2), ("marian", 6, 2), ("mixtral", 0, 0)],
)
def test_families(architecture: str, attentions: int, heads: int) -> None:
    found = heads_of(of(architecture))
    assert len(found) == attentions
    assert all(len(row.kept) == heads for row in found)
    assert len({row.name for row in found}) == attentions


def test_grouped_queries() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=50, head_dim=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight[16:32] = 0
    (row,) = heads_of(model)
    assert row.kept == pytest.approx((1.0, 0.5, 1.0, 1.0))


@pytest.mark.parametrize("options", [{}, {"kdim": 10, "vdim": 12}])
def test_attention_of_torch(options: dict[str, int]) -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, **options)}).requires_grad_(False)
    attention: Any = model["attn"]
    attention.out_proj.weight[:, :4] = 0
    (row,) = heads_of(model)
    assert row.name == "attn"
    assert row.kept == pytest.approx((0.5, 1.0))
    (alone,) = heads_of(attention)
    assert alone.name == ""


def test_prune_reports_them() -> None:
    report = prune(bert(), 0.5, granularity="4x1")
    assert [len(row.kept) for row in report.heads] == [2, 2]
    kept = torch.tensor([row.kept for row in report.heads])
    assert kept.mean() == pytest.approx(0.5, abs=0.02)
    assert prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), 0.5).heads == []
