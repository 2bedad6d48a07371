"""Inputs made from a model's config: every kind of model runs on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.models.inputs import inputs_of_texts, positions, random_inputs, vocabulary

transformers = pytest.importorskip("transformers")

BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 30,
}
BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 30,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
IMAGE = {"image_size": 16, "patch_size": 8}
SOUND = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "BertModel": ("BertConfig", BERT),
    "BertForMultipleChoice": ("BertConfig", BERT),
    "RobertaModel": ("RobertaConfig", BERT | {"pad_token_id": 1}),
    "MPNetModel": ("MPNetConfig", BERT | {"pad_token_id": 1}),
    "DistilBertModel": (
        "DistilBertConfig",
        {"vocab_size": 40, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24},
    ),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 30},
    ),
    "LlamaForCausalLM": ("LlamaConfig", BERT),
    "T5ForConditionalGeneration": ("T5Config", T5),
    "T5EncoderModel": ("T5Config", T5),
    "MarianMTModel": ("MarianConfig", BART),
    "BartModel": ("BartConfig", BART),
    "BartForSequenceClassification": ("BartConfig", BART),
    "MBartForConditionalGeneration": ("MBartConfig", BART),
    "PegasusForConditionalGeneration": ("PegasusConfig", BART),
    "WhisperForConditionalGeneration": ("WhisperConfig", BART | SOUND),
    "Speech2TextForConditionalGeneration": (
        "Speech2TextConfig",
        BART | {"input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 60},
    ),
    "ViTModel": ("ViTConfig", BERT | IMAGE),
    "CLIPModel": (
        "CLIPConfig",
        {
            "text_config": BERT | {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
            "vision_config": BERT | IMAGE,
            "projection_dim": 8,
        },
    ),
    "Wav2Vec2Model": (
        "Wav2Vec2Config",
        BERT
        | {
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
        },
    ),
}


def make(name: str) -> nn.Module:
    config, sizes = SIZES[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**sizes))
    return model.eval()


@pytest.mark.parametrize("name", SIZES)
def test_every_kind_of_model_runs_on_random_inputs(name: str) -> None:
    model = make(name)
    given = list(random_inputs(model, 5))
    for one, again in zip(given, random_inputs(model, 5), strict=True):
        assert one.keys() == again.keys()
        assert all(torch.equal(one[key], again[key]) for key in one)
        with torch.no_grad():
            output = model(**one)
        floats = [t for t in output.values() if isinstance(t, torch.Tensor)]
        assert floats
        assert all(bool(t.isfinite().all()) for t in floats)
    if "input_ids" in given[0]:
        lengths = [one["input_ids"].shape[-1] for one in given]
        assert lengths[:3] == [1, 5, 16]
        assert lengths[4] == (128 if name.startswith(("T5", "DistilBert")) else 28)


TEXT_MODELS = [
    name
    for name in SIZES
    if not name.startswith(("Whisper", "Speech2Text", "ViT", "CLIP", "Wav2Vec2"))
]


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_texts_of_several_lengths(name: str) -> None:
    model = make(name)
    ids = torch.randint(4, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 5] = 3  # BART's end of a text
    ids[1, 3:] = torch.tensor([3, 0, 0])
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    given = inputs_of_texts(model, ids, mask)
    if name.startswith("BartForSequence"):
        with torch.no_grad():
            assert model(**given).logits.shape == (2, 3)
        return
    with torch.no_grad():
        both = model(**given)[0]
        alone = model(**inputs_of_texts(model, ids[1:, :4], mask[1:, :4]))[0]
    part = both[1:] if both.ndim == 2 else both[1:, :4]
    torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("WhisperForConditionalGeneration", "input_features"),
        ("ViTModel", "pixel_values"),
        ("CLIPModel", "input_ids and pixel_values"),
        ("Wav2Vec2Model", "input_values"),
    ],
)
def test_models_that_texts_are_not_enough_for(name: str, needed: str) -> None:
    ids = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(UsageError, match=f"^{name} needs {needed}: texts are not enough"):
        inputs_of_texts(make(name), ids, ids)


def test_sizes_of_vocabulary_and_positions() -> None:
    for name, rows, longest in (
        ("BertModel", 40, 30),
        ("RobertaModel", 40, 28),
        ("MPNetModel", 40, 28),
        ("BartModel", 40, 30),
        ("MarianMTModel", 40, 30),
        ("GPT2LMHeadModel", 40, 30),
        ("LlamaForCausalLM", 40, None),
        ("T5EncoderModel", 40, None),
        ("CLIPModel", 40, None),
    ):
        model = make(name)
        assert vocabulary(model) == rows, name
        assert positions(model) == longest, name
    assert vocabulary(nn.Linear(2, 2)) is None
    assert positions(nn.Linear(2, 2)) is None


def test_other_models_have_to_be_given_inputs() -> None:
    with pytest.raises(UsageError, match="no vocab_size: give verify its inputs"):
        list(random_inputs(nn.Linear(2, 2), 1))
