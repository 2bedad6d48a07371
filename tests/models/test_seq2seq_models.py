"""Encoder-decoder models of transformers, run natively, agree with transformers in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.nn import NativeDecoder, NativeEncoder

transformers = pytest.importorskip("transformers")

IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
T5 = IDS | {
    "vocab_size": 99,
    "d_model": 60,
    "d_kv": 11,
    "d_ff": 77,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 5,
    "relative_attention_max_distance": 20,
}
MARIAN = IDS | {
    "vocab_size": 99,
    "d_model": 60,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 77,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 90,
    "forced_eos_token_id": None,
}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5", "ForConditionalGeneration", T5 | {"feed_forward_proj": "relu"}),
    "t5 1.1": (
        "T5",
        "ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "marian": ("Marian", "MTModel", MARIAN | {"activation_function": "swish"}),
    "marian, scaled": ("Marian", "MTModel", MARIAN | {"scale_embedding": True}),
    "bart": ("Bart", "ForConditionalGeneration", MARIAN | {"forced_bos_token_id": None}),
    "mbart": ("MBart", "ForConditionalGeneration", MARIAN | {"scale_embedding": True}),
    "pegasus": ("Pegasus", "ForConditionalGeneration", MARIAN | {"scale_embedding": True}),
}


def hugging(kind: str, head: str | None = None) -> Any:
    torch.manual_seed(0)
    name, usual, sizes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}{head or usual}")(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.copy_(parameter + 0.3 * torch.randn_like(parameter))
        elif "embed_positions" not in name and "shared" not in name:
            parameter.mul_(3)
            if ("layer" in name or "block" in name) and "relative" not in name:
                parameter[torch.rand_like(parameter) < 0.6] = 0
    return model


def batch(padding: str) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 90, (3, 70), generator=source)
    target = torch.randint(2, 90, (3, 21), generator=source)
    mask = torch.ones_like(ids)
    if padding == "right":
        mask[1, 30:], mask[2, 1:] = 0, 0
    elif padding == "left":
        mask[1, :30], mask[2, :69] = 0, 0
    ids[mask == 0] = 0
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}


def sparse(model: Any, spec: str = "csr", dtype: str = "float32") -> Any:
    assert "natively" in se.sparsify_(model, se.SparseConfig(spec, dtype)).native
    return model


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_agree_with_transformers(
    kind: str, padding: str, recwarn: pytest.WarningsRecorder
) -> None:
    model, inputs = hugging(kind), batch(padding)
    names = list(model.state_dict())
    expected = copy.deepcopy(model).double()(**inputs, use_cache=False).logits
    sparse(model)
    kinds = {type(module) for module in model.modules()}
    assert {NativeDecoder, NativeEncoder} <= kinds
    for use_cache in (True, False):
        y = model(**inputs, use_cache=use_cache).logits
        assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not any("one by one" in str(w.message) for w in recwarn)
    se.densify_(model)
    assert list(model.state_dict()) == names
    assert not {type(module) for module in model.modules()} & {NativeDecoder, NativeEncoder}


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("spec", ["csr", "sellp", "bitmask"])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_the_tokens_of_transformers(
    kind: str, spec: str, how: dict[str, int]
) -> None:
    model, inputs = hugging(kind), batch("right")
    del inputs["decoder_input_ids"]
    options: dict[str, Any] = dict(max_new_tokens=25, do_sample=False, **how)
    expected = copy.deepcopy(model).double().generate(**inputs, **options)
    assert torch.equal(sparse(model, spec).generate(**inputs, **options), expected)


def test_encoders_alone_and_packages(tmp_path: Any) -> None:
    model, inputs = hugging("t5", "EncoderModel"), batch("right")
    del inputs["decoder_input_ids"]
    expected = copy.deepcopy(model).double()(**inputs).last_hidden_state
    assert "encoder" in se.sparsify_(model, "csr").native
    seen = inputs["attention_mask"].bool()
    y = model(**inputs).last_hidden_state
    assert (y - expected)[seen].abs().max() < 1e-5 * expected.abs().max()
    model, inputs = hugging("marian"), batch("right")
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "dense")
    se.save(sparse(model), tmp_path / "package", source=tmp_path / "dense")
    loaded = se.load(tmp_path / "package")
    assert any(isinstance(m, NativeDecoder) for m in loaded.modules())
    torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-3, rtol=1e-3)


def test_pruning_reaches_every_layer() -> None:
    for kind in ("t5", "marian"):
        model = hugging(kind)
        calibration = [batch("right")]
        report = se.prune(
            model, 0.8, criterion="sparsegpt", recovery="least_squares", calibration=calibration
        )
        assert report.sparsity == pytest.approx(0.8, abs=0.05)
        assert any("decoder" in layer.name for layer in report.layers)


def test_bad_input_is_refused() -> None:
    model, inputs = sparse(hugging("marian")), batch("none")
    for change, why in (
        ({"input_ids": inputs["input_ids"] + 90}, "from 0 to 98"),
        ({"decoder_input_ids": inputs["decoder_input_ids"] + 90}, "from 0 to 98"),
        ({"attention_mask": inputs["attention_mask"] * 0}, "masked as a whole"),
        ({"decoder_input_ids": torch.ones(3, 91, dtype=torch.long)}, "90 positions"),
        (
            {"input_ids": torch.ones(3, 91, dtype=torch.long), "attention_mask": None},
            "90 positions",
        ),
    ):
        with pytest.raises(UsageError, match=why):
            model(**(inputs | change))
    decoder = model.get_decoder()
    with pytest.raises(UsageError, match="needs encoder_hidden_states"):
        decoder(inputs["decoder_input_ids"])
    with pytest.raises(UsageError, match="encoder_hidden_states must be"):
        decoder(inputs["decoder_input_ids"], encoder_hidden_states=torch.randn(3, 5, 59))


def test_masks_of_floats_and_given_embeddings() -> None:
    model, inputs = hugging("marian, scaled"), batch("right")
    embeds = {"inputs_embeds": torch.randn(3, 70, 60), "attention_mask": inputs["attention_mask"]}
    expected = copy.deepcopy(model).double()
    seen = inputs["attention_mask"].bool()
    states = expected.get_encoder()(
        inputs_embeds=embeds["inputs_embeds"].double(), attention_mask=embeds["attention_mask"]
    ).last_hidden_state
    sparse(model)
    y = model.get_encoder()(**embeds).last_hidden_state
    assert (y - states)[seen].abs().max() < 1e-5 * states.abs().max()
    floats = model.get_encoder()(**embeds | {"attention_mask": embeds["attention_mask"].float()})
    assert torch.equal(floats.last_hidden_state, y)


def test_both_stacks_are_looked_at_anew() -> None:
    model, inputs = hugging("t5"), batch("none")
    se.sparsify_(model, "csr", filter_fn=lambda module, name: name.startswith("encoder"))
    before = model(**inputs).logits
    se.sparsify_(model, se.SparseConfig("csr", "int8"))
    after = model(**inputs).logits
    assert not torch.equal(before, after)
    expected = se.densify_(copy.deepcopy(model))(**inputs).logits
    assert (after - expected).norm() < 0.1 * expected.norm()
