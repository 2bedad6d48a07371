"""Encoders of transformers, run natively, agree with transformers in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from family_models import widened
from torch import Tensor

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.nn import NativeEncoder
from sparse_engine.nn.native.stack import native_stacks

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 77,
    "vocab_size": 99,
    "max_position_embeddings": 140,
}
DISTIL = {"dim": 60, "n_layers": 3, "n_heads": 5, "hidden_dim": 77}
SLIDING, FULL = "sliding_attention", "full_attention"
MODERN = {"pad_token_id": 1, "layer_types": [SLIDING, FULL, SLIDING], "local_attention": 20}
OPTIONS: dict[str, dict[str, Any]] = {
    "ModernBert": MODERN | {"attention_bias": True, "mlp_bias": True},
    "EuroBert": {"pad_token_id": 1, "num_attention_heads": 6, "num_key_value_heads": 2},
    "NomicBert": {"pad_token_id": 1, "num_attention_heads": 6},
}
FAMILIES = (
    "Bert",
    "Roberta",
    "XLMRoberta",
    "Camembert",
    "Electra",
    "DistilBert",
    "MPNet",
    "ModernBert",
    "EuroBert",
    "NomicBert",
)


def hugging(kind: str, head: str = "Model", **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = (
        DISTIL | {"vocab_size": 99, "max_position_embeddings": 140}
        if kind == "DistilBert"
        else SMALL | OPTIONS.get(kind, {})
    )
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    model = getattr(transformers, f"{kind}{head}")(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():  # initial biases and norms hide mistakes
        if parameter.dim() == 1:
            parameter.copy_(parameter + 0.3 * torch.randn_like(parameter))
        elif "layer." in name or "layers." in name:
            parameter[torch.rand_like(parameter) < 0.6] = 0
    return model


def batch(padding: str) -> dict[str, Tensor]:
    ids = torch.randint(5, 90, (4, 130), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding == "right":
        mask[1, 100:], mask[2, 1:], mask[3, 64:] = 0, 0, 0
    elif padding == "left":
        mask[1, :100], mask[2, :129], mask[3, :64] = 0, 0, 0
    ids[mask == 0] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_families_agree_with_transformers(
    kind: str, padding: str, attention: str, recwarn: pytest.WarningsRecorder
) -> None:
    model, inputs = hugging(kind), batch(padding)
    model.set_attn_implementation(attention)
    names = list(model.state_dict())
    # Windows hide all keys from some padding, which is NaN in float64 and eager attention.
    wide = widened if kind == "ModernBert" else torch.nn.Module.double
    expected = wide(copy.deepcopy(model))(**inputs).last_hidden_state
    report = se.sparsify_(model, "csr")
    assert "natively" in report.native
    assert "natively" in str(report)
    y = model(**inputs).last_hidden_state
    seen = inputs["attention_mask"].bool()
    assert (y - expected)[seen].abs().max() < 1e-5 * expected[seen].abs().max()
    assert not any("one by one" in str(w.message) for w in recwarn)
    kept = [n for n in names if "layer" not in n or "norm" in n.lower()]
    assert set(kept) <= set(model.state_dict())
    se.densify_(model)
    assert not native_stacks(model)
    assert list(model.state_dict()) == names
    again = model(**inputs).last_hidden_state
    assert (again - expected)[seen].abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("spec", ["csr", "bsr:16x1", "bsr:4x1", "bitmask", "sellp"])
def test_any_format_runs_natively(spec: str, dtype: str) -> None:
    model, inputs = hugging("Bert"), batch("right")
    expected = model(**inputs).last_hidden_state
    assert "natively" in se.sparsify_(model, se.SparseConfig(spec, dtype)).native
    seen = inputs["attention_mask"].bool()
    error = (model(**inputs).last_hidden_state - expected)[seen].abs().max() / expected.abs().max()
    assert error < {"float32": 1e-4, "bfloat16": 2e-2, "int8": 5e-2}[dtype]


def test_heads_and_packages(tmp_path: Any) -> None:
    model, inputs = hugging("Roberta", "ForSequenceClassification", num_labels=3), batch("right")
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "dense")
    assert "roberta.encoder" in se.sparsify_(model, "csr").native
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    se.save(model, tmp_path / "package", source=tmp_path / "dense")
    loaded = se.load(tmp_path / "package")
    assert any(isinstance(m, NativeEncoder) for m in loaded.modules())
    torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_weight_that_changes_is_seen() -> None:
    model, inputs = hugging("Bert"), batch("none")
    se.sparsify_(model, "csr")
    before = model(**inputs).last_hidden_state
    other = copy.deepcopy(model)
    norm = model.encoder.layer[1].output.LayerNorm
    norm.weight = torch.nn.Parameter(norm.weight * 2, requires_grad=False)
    after = model(**inputs).last_hidden_state
    assert (after - before).abs().max() > 0.1
    assert torch.equal(other(**inputs).last_hidden_state, before)


def test_a_weight_written_in_place_is_seen() -> None:
    """Also one of a layer that stayed dense, of which the native stack holds a copy."""
    model, inputs = hugging("Bert"), batch("none")
    se.sparsify_(model, "csr", filter_fn=lambda module, name: not name.endswith("1.output.dense"))
    dense = model.encoder.layer[1].output.dense
    assert isinstance(dense, torch.nn.Linear)
    before = model(**inputs).last_hidden_state
    with torch.no_grad():
        dense.weight.mul_(3)
    expected = se.densify_(copy.deepcopy(model))(**inputs).last_hidden_state
    after = model(**inputs).last_hidden_state
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)


def test_training_mode_runs_layer_by_layer() -> None:
    model, inputs = hugging("Bert"), batch("none")
    se.sparsify_(model, "csr")
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        model(**inputs)


def test_what_runs_layer_by_layer_says_so() -> None:
    model, inputs = hugging("Bert"), batch("none")
    expected = model(**inputs, output_hidden_states=True)
    se.sparsify_(model, "csr")
    with pytest.warns(UserWarning, match="one by one"):
        output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == len(expected.hidden_states) == 4
    torch.testing.assert_close(
        output.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-4
    )


def test_compiled_models_run_layer_by_layer() -> None:
    model, inputs = hugging("Bert"), batch("none")
    expected = model(**inputs).last_hidden_state
    se.sparsify_(model, "csr")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_models_without_a_native_encoder_say_why() -> None:
    decoder = hugging("Bert", is_decoder=True)
    assert "is_decoder" in se.sparsify_(decoder, "csr").native
    assert "tanh" in se.sparsify_(hugging("Bert", hidden_act="tanh"), "csr").native
    plain = torch.nn.Sequential(torch.nn.Linear(8, 8))
    plain[0].weight.data[:, :6] = 0
    assert "no family" in se.sparsify_(plain, "csr").native


def test_masks_that_are_refused() -> None:
    model, inputs = hugging("Bert"), batch("none")
    se.sparsify_(model, "csr")
    inputs["attention_mask"][2] = 0
    with pytest.raises(UsageError, match="sequence 2 is masked as a whole"):
        model(**inputs)
    encoder = model.encoder
    x = torch.randn(2, 7, 60)
    causal = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)
    with pytest.raises(UsageError, match="same keys"):
        encoder(x, attention_mask=causal)
    with pytest.raises(UsageError, match="mask is"):
        encoder(
            x,
            attention_mask=torch.ones(2, 6, dtype=torch.bool).index_fill(1, torch.tensor(0), False),
        )
    with pytest.raises(UsageError, match="expected"):
        encoder(torch.randn(2, 7, 59))
    with pytest.raises(UsageError, match="inference only"):
        encoder(x.requires_grad_())
    holes = hugging("MPNet")
    se.sparsify_(holes, "csr")
    inputs = batch("none")
    inputs["attention_mask"][1, 5] = 0
    with pytest.raises(UsageError, match="holes"):
        holes(**inputs)
