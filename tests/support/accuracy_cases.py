"""Made-up data and a tiny encoder for the tables of bench/accuracy.py."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from accuracy_sick import Encoder
from command_line import WORDS


def sentence(source: random.Random) -> str:
    """Six words that the tokenizer of `tiny_encoder` knows."""
    return " ".join(source.choices(WORDS[4:], k=6))


def write_sick(folder: Path, source: random.Random) -> None:
    """Files of SICK with twelve pairs each, all of which share a sentence."""
    (folder / "match/sick").mkdir(parents=True)
    head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    shared = sentence(source)
    for name in ("train", "test_annotated"):
        rows = [f"1\t{shared}\t{sentence(source)}\t{i / 4}\tNEUTRAL" for i in range(12)]
        (folder / f"match/sick/SICK_{name}.txt").write_text("\n".join([head, *rows]))


def tiny_encoder(folder: Path, **sizes: float) -> Encoder:
    """A BERT of random weights with a tokenizer of WORDS; `sizes` are options of its config."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    options: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": len(WORDS),
    }
    BertModel(BertConfig(**options | sizes)).eval().save_pretrained(folder)
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Encoder(folder)
