"""Made-up data and a tiny encoder for the tables of bench/accuracy.py."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_sick import Encoder
from command_line import WORDS
from torch import Tensor, nn


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


def write_brown(folder: Path, source: random.Random) -> None:
    """Twenty sentences of the Brown corpus for each of train and test, and one that is short."""
    (folder / "lm/brown").mkdir(parents=True)
    for part in ("train", "test"):
        lines = [sentence(source) for _ in range(20)]
        (folder / f"lm/brown/brown.{part}.txt").write_text("\n".join(["too short", *lines]))


def write_tagger(data: Path) -> None:
    """A BiLSTM tagger of random weights, five sentences for dev and two for the test."""
    folder = data / "models/g2pM_bilstm"
    (folder / "cpp_dataset").mkdir(parents=True)
    letters = "시끝▁abcdefg"
    vocabulary = {letter: i for i, letter in enumerate(["<PAD>", "<UNK>", *letters])}
    (folder / "char2idx.json").write_text(json.dumps(vocabulary))
    (folder / "class2idx.json").write_text(json.dumps({"x": 0, "y": 1}))
    texts = {"test": ["ab▁c▁", "▁d▁e"], "dev": ["ab▁c▁", "f▁g▁", "▁g▁f", "d▁e▁", "▁a▁"]}
    for part, lines in texts.items():
        (folder / f"cpp_dataset/{part}.sent").write_text("\n".join(lines))
        (folder / f"cpp_dataset/{part}.lb").write_text("\n".join("xy"[i % 2] for i in range(5)))
    labels = folder / "cpp_dataset/test.lb"
    labels.write_text("x\ny")
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
    state: dict[str, Tensor] = {f"lstm.{k}": v for k, v in lstm.state_dict().items()}
    state["embedding.weight"] = torch.randn(len(vocabulary), 4)
    for name, layer in (("0", nn.Linear(6, 5)), ("2", nn.Linear(5, 2))):
        state |= {f"logit_layer.{name}.{k}": v for k, v in layer.state_dict().items()}
    np.savez(folder / "g2pM.npz", **{name: v.numpy() for name, v in state.items()})


def write_stories(data: Path) -> tuple[Path, tuple[int, ...]]:
    """A file of llama2.c with random weights; returns its path and its header."""
    header = (16, 12, 2, 4, 2, 20, 32)
    width, inner, layers, heads, kv_heads, words, positions = header
    size = width // heads
    count = words * width + layers * (2 * width * width + 2 * kv_heads * size * width)
    count += layers * (2 * width + 3 * width * inner) + width + positions * size
    values = np.random.default_rng(0).normal(0, 0.5, count).astype("<f4")
    path = data / "models/stories260K/stories260K.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(np.array(header, "<i4").tobytes() + values.tobytes())
    return path, header
