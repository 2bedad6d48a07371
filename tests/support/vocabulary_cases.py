"""Small tokenizers trained on a few sentences, and random models with their vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TRAINING = [
    "the quick brown fox jumps over the lazy dog and the dog sleeps",
    "a tokenizer splits words into pieces, and pieces into characters",
    "pruning removes weights; cutting removes whole rows and columns",
    "embeddings have a row for each token, unused rows cost memory",
    "sleeping dogs are lazier than the quickest of the foxes",
    "token by token a decoder writes an answer of many words",
] * 3
CORPUS = ["the lazy dog sleeps", "a row for each token and word", "dogs cost memory"]
OTHER = ["unseen texts: jumping foxes, quickly written!", "zebra Ünïcode 漢字 €5", ""]
SIZE = 160
"""Of the trained vocabularies."""
KINDS = ("wordpiece", "bpe", "unigram")


def tokenizer(kind: str) -> Any:
    """A trained tokenizer of the library."""
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made.train_from_iterator(
            TRAINING,
            trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False),
        )
        ids = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids
        )
    elif kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.train_from_iterator(
            TRAINING,
            trainers.BpeTrainer(
                vocab_size=256 + SIZE,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        made.add_special_tokens(["<|endoftext|>"])  # the last id
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        made.train_from_iterator(
            TRAINING,
            trainers.UnigramTrainer(
                vocab_size=SIZE,
                special_tokens=["<pad>", "</s>", "<unk>"],
                unk_token="<unk>",
                show_progress=False,
            ),
        )
        made.post_processor = processors.TemplateProcessing(
            "$A </s>", "$A </s> $B </s>", [("</s>", 1)]
        )
    return made


NAMES = {
    "wordpiece": {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
    "bpe": {"eos_token": "<|endoftext|>"},
    "unigram": {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"},
}


def model(architecture: str, rows: int, last: int) -> Any:
    """A random model.

    Args:
        architecture: the class of transformers.
        rows: of its vocabulary.
        last: the id of the end of a text, for decoders.
    """
    torch.manual_seed(0)
    cls = getattr(transformers, architecture)
    small = {"vocab_size": rows, "initializer_range": 0.5}
    if cls.config_class is transformers.GPT2Config:
        small |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        small |= {"bos_token_id": last, "eos_token_id": last}
    elif cls.config_class is transformers.T5Config:
        small |= {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        small |= {"decoder_start_token_id": 0}
    elif cls.config_class in (transformers.MarianConfig, transformers.BartConfig):
        small |= {"d_model": 16, "max_position_embeddings": 64, "init_std": 0.5}
        for side in ("encoder", "decoder"):
            small |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
        small |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        small |= {"bos_token_id": 1, "forced_eos_token_id": 1, "forced_bos_token_id": None}
    else:
        small |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        small |= {"intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0}
    if cls.config_class is transformers.LlamaConfig:
        small |= {"bos_token_id": last, "eos_token_id": last, "pad_token_id": last}
    made = cls(cls.config_class(**small)).eval()
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if name.endswith(("bias", "final_logits_bias")):  # initialised with zeros
            tensor.data.normal_()
    return made


def folder(path: Path, kind: str, architecture: str, padding: int = 0) -> Path:
    """A model folder as transformers writes it, with files of the vocabulary beside.

    Args:
        path: to write.
        kind: of the tokenizer.
        architecture: the class of the model.
        padding: rows of the model that have no token.
    """
    made = tokenizer(kind)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **NAMES[kind])
    rows = made.get_vocab_size()
    model(architecture, rows + padding, rows - 1).save_pretrained(path)
    fast.save_pretrained(path)
    ordered = sorted(made.get_vocab(), key=made.token_to_id)
    if kind == "wordpiece":
        (path / "vocab.txt").write_text("".join(f"{token}\n" for token in ordered))
    if kind == "bpe":
        plain = json.loads(made.to_str())["model"]
        (path / "vocab.json").write_text(json.dumps(plain["vocab"]))
        merges = "".join(f"{a} {b}\n" for a, b in plain["merges"])
        (path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return path
