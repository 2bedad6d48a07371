"""Whole models: pruned, made sparse, saved and loaded into what their constructor gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from whole_models import MODELS, inputs, output

import sparse_engine as se

MIXTURES = ("mixtral", "qwen3-moe")


@pytest.mark.parametrize("name", MODELS)
def test_pruned_sparse_saved_loaded(name: str, tmp_path: Path) -> None:
    if name in MIXTURES:
        pytest.importorskip("transformers")
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    # Heads of language models are left alone unless asked for; they weigh in small ones.
    se.prune(model, 0.8, filter_fn=(lambda *_: True) if name in MIXTURES else None)
    given = inputs(name)
    dense = output(model, given)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    report = se.sparsify_(model, "csr")
    assert {row.name for row in report.rows if row.format != "csr"} <= {"head"}, report
    assert report.skipped > 0.79
    got = output(model, given)
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-5)
    se.save(model, tmp_path / "package", report=report)
    inspected = se.io.inspect(tmp_path / "package")
    assert inspected.skipped == report.skipped
    assert [row.name for row in inspected.rows] == [row.name for row in report.rows]
    plain = None if name in MIXTURES else MODELS[name]()
    loaded = se.load(tmp_path / "package", model=plain)
    assert torch.equal(output(loaded, given), got)
    for back in (model, loaded):
        se.densify_(back)
        restored = back.state_dict()
        assert restored.keys() == state.keys()
        assert all(torch.equal(restored[key], value) for key, value in state.items())
        torch.testing.assert_close(output(back, given), dense, rtol=1e-5, atol=1e-5)
