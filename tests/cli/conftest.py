"""A tiny model, texts and a package, which the commands read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from command_line import WORDS, ok

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with a word tokenizer, as Hugging Face writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cli") / "model"
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).eval().save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def texts(model: Path) -> Path:
    path = model.parent / "texts.txt"
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(4, len(WORDS), (200, 12), generator=generator).tolist()
    path.write_text("\n".join(" ".join(WORDS[i] for i in row) for row in picks))
    return path


@pytest.fixture(scope="module")
def package(model: Path, texts: Path) -> Path:
    """The whole path: prune with calibration, then convert with verification."""
    pruned, out = model.parent / "pruned", model.parent / "package"
    told = ok("prune", model, pruned, "--sparsity", "0.8", "--calibration", texts)
    assert "query" in told
    assert (pruned / "pruning.json").is_file()
    told = ok("convert", pruned, out, "--format", "csr", "--verify")
    assert "max relative error" in told
    return out
