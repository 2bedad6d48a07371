"""Small models with tokenizers, as packages: what the tests of tasks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import sparse_engine as se
from sparse_engine.tasks import open_task

WORDS = "the a cat dog sat on mat who why Ada Paris in . ?".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s"]
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
    "initializer_range": 0.7,
}


def folder(path: Path, kind: str) -> Path:
    """A model folder with a tokenizer: words for BERT, bytes for Llama."""
    torch.manual_seed(0)
    path.mkdir(parents=True)
    if kind == "LlamaForCausalLM":
        letters = {
            c: i
            for i, c in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
        }
        tokenizer = Tokenizer(models.BPE(letters, []))
        tokenizer.add_special_tokens(["<s>", "</s>"])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", 0)]
        )
        config: Any = transformers.LlamaConfig(
            **SIZES, vocab_size=len(letters), bos_token_id=0, eos_token_id=1, pad_token_id=0
        )
    elif kind == "T5ForConditionalGeneration":
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "</s>", "[UNK]", *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            "$A </s>", special_tokens=[("</s>", 1)]
        )
        config = transformers.T5Config(
            vocab_size=len(vocabulary),
            d_model=24,
            d_kv=8,
            d_ff=36,
            num_layers=2,
            num_heads=3,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
            initializer_factor=9.0,
        )
    else:
        vocabulary = {piece: i for i, piece in enumerate(PIECES)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        labels = {} if "Question" in kind else {"id2label": LABELS}
        config = transformers.BertConfig(**SIZES, vocab_size=len(PIECES), **labels)
    model = getattr(transformers, kind)(config).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features > 4:
            module.weight[torch.rand_like(module.weight) < 0.6] = 0
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def packages(root: Path) -> dict[str, Path]:
    """Packages of all kinds, converted from Hugging Face folders."""
    found = {}
    for kind in (
        "BertModel",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "LlamaForCausalLM",
        "T5ForConditionalGeneration",
    ):
        source = folder(root / f"dense-{kind}", kind)
        model, _ = se.io.load_pretrained(source)
        se.sparsify_(model, "csr")
        found[kind] = se.save(model, root / f"sparse-{kind}", source=source)
    return found


def opened(package: Path) -> Any:
    return open_task(se.load(package), package)
