"""export_transformers: transformers alone loads the folder and computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file
from uneven_models import MODELS, build, cut_, output, sparse

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.io import load_pretrained
from sparse_engine.structures import find_sites, resize_

torch.set_num_threads(1)
OPTIONS: dict[str, dict[str, tuple[Any, Any]]] = {
    "bert": {"intermediate_size": (48, 24)},
    "distilbert": {"hidden_dim": (48, 24)},
    "gpt2": {"n_inner": (None, 64)},
    "llama": {
        "intermediate_size": (48, 24),
        "num_attention_heads": (8, 4),
        "num_key_value_heads": (4, 2),
    },
    "t5": {"d_ff": (48, 24), "num_heads": (4, 2)},
}


def same(model: Any, folder: Path) -> Any:
    """The model that transformers loads, without missing or unused weights, computes the same."""
    loaded, info = type(model).from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    torch.testing.assert_close(output(loaded.eval()), output(model))
    return loaded


@pytest.mark.parametrize("kind", list(MODELS))
def test_uneven_models_are_padded(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    left = cut_(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = se.export_transformers(model, tmp_path / "out")
    loaded = same(model, tmp_path / "out")
    assert report.padded
    assert all(site.kept == left[site.name] < site.groups for site in report.padded)
    assert "zeros in place of" in str(report)
    assert "\n" not in str(report)
    assert report.parameters == (model.num_parameters(), loaded.num_parameters())
    assert report.parameters[0] < report.parameters[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_config_says_what_is_even(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    cut_(model, even=True)
    report = se.export_transformers(model, tmp_path / "out")
    loaded = same(model, tmp_path / "out")
    assert report.options == OPTIONS[kind]
    assert {site.kind for site in report.padded} == (set() if kind in ("llama", "t5") else {"head"})
    for name, (_, value) in report.options.items():
        assert getattr(loaded.config, name) == value
    if not report.padded:
        assert loaded.num_parameters() == model.num_parameters()


def test_widths_are_padded_to_the_widest(tmp_path: Path) -> None:
    model = build("llama")
    sites = find_sites(model, ("unit",))
    kept = {site.name: torch.arange(30 - 4 * i) for i, site in enumerate(sites)}
    resize_(model, kept, sites)
    report = se.export_transformers(model, tmp_path / "out")
    assert report.options == {"intermediate_size": (48, 30)}
    assert [(site.kept, site.groups) for site in report.padded] == [(26, 30), (22, 30)]
    same(model, tmp_path / "out")


def test_files_and_dtypes_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    build("bert").half().save_pretrained(source)
    (source / "vocab.txt").write_text("a\nb\n")
    model, _ = load_pretrained(source)
    cut_(model, even=True)
    se.export_transformers(model, tmp_path / "out", source)
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "out/config.json").read_text())
    assert after == {**before, "intermediate_size": 24}
    assert (tmp_path / "out/vocab.txt").read_text() == "a\nb\n"
    again, _ = load_pretrained(tmp_path / "out")
    torch.testing.assert_close(output(again), output(model), atol=2e-3, rtol=2e-3)


def test_a_whole_model_is_written_as_it_is(tmp_path: Path) -> None:
    model = build("gpt2")
    report = se.export_transformers(model, tmp_path / "out")
    assert not report.options
    assert not report.padded
    assert "config.json as it was" in str(report)
    same(model, tmp_path / "out")


def test_refusals(tmp_path: Path) -> None:
    def refused(model: Any, match: str) -> None:
        with pytest.raises(UsageError, match=match) as caught:
            se.export_transformers(model, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    refused(torch.nn.Linear(2, 2), "Linear is no model of transformers")
    refused(sparse(build("bert")), "densify_")
    model = build("bert")
    model.bert.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 40)
    refused(model, "cannot be exported: .*other tensors leave")
    model = build("bert")
    model.bert.encoder.layer[0].output.LayerNorm = torch.nn.LayerNorm(31)
    refused(model, "LayerNorm.* is not what its config makes it")
