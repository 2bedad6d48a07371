"""Texts as calibration batches: padded as the model pads, cut to what it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_engine.errors import UsageError
from sparse_engine.text.calibration import calibration_batches
from sparse_engine.text.tokenizer import encode

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<s>", "<pad>", "</s>", *"a b c d e f g h".split()]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(unknown: str = "</s>") -> Any:
    words = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=unknown))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def roberta(positions: int = 12) -> Any:
    config = transformers.RobertaConfig(
        **SIZES,
        vocab_size=len(WORDS),
        intermediate_size=24,
        max_position_embeddings=positions,
        pad_token_id=1,
    )
    return transformers.RobertaModel(config).eval()


def test_batches_follow_length_and_are_padded_with_the_models_token() -> None:
    batches = calibration_batches(["a b c", "d", "e f"], tokenizer(), roberta(), batch_size=2)
    assert [{k: v.tolist() for k, v in batch.items()} for batch in batches] == [
        {"input_ids": [[6, 1], [7, 8]], "attention_mask": [[1, 0], [1, 1]]},
        {"input_ids": [[3, 4, 5]], "attention_mask": [[1, 1, 1]]},
    ]


def test_texts_are_cut_to_the_position_table() -> None:
    text = " ".join("abcdefgh" * 3)
    for asked, kept in ((128, 10), (7, 7)):
        (batch,) = calibration_batches([text], tokenizer(), roberta(), max_length=asked)
        assert batch["input_ids"].shape == (1, kept)
        with torch.no_grad():
            roberta()(**batch)


def test_a_decoder_that_labels_and_has_no_padding_gets_single_texts() -> None:
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=2
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    batches = calibration_batches(["a b c", "d", "e f"], tokenizer(), model)
    assert [batch["input_ids"].tolist() for batch in batches] == [[[6]], [[7, 8]], [[3, 4, 5]]]
    with torch.no_grad():
        for batch in batches:
            model(**batch)


def test_a_tab_is_white_space_for_a_model_that_reads_one_text() -> None:
    (batch,) = calibration_batches(["a\tb"], tokenizer(), roberta())
    assert batch["input_ids"].tolist() == [[3, 4]]


def test_texts_without_tokens_or_words_are_refused() -> None:
    silent = tokenizer()
    silent.normalizer = tokenizers.normalizers.Replace("a", "")
    with pytest.raises(UsageError, match="makes no tokens of a text"):
        calibration_batches(["a", "b"], silent, roberta())
    lacking = tokenizer("[UNK]")
    for task in (encode, lambda made, texts: calibration_batches(texts, made, roberta())):
        with pytest.raises(UsageError, match="the tokenizer fails on a text") as caught:
            task(lacking, ["a", "zebra"])
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None
