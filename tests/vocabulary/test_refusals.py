"""What cannot be cut is refused in one line, and the model stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refused
from torch import nn
from vocabulary_cases import CORPUS, folder, model

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, SparseEngineError, UsageError
from sparse_engine.io import load_pretrained


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder(tmp_path / "model", "wordpiece", "BertModel")


def refuse(
    given: Any, tokenizer: Any, texts: Any, match: str, structure: Any = "vocabulary"
) -> None:
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    with pytest.raises(SparseEngineError, match=match) as error:
        se.cut_vocabulary(given, tokenizer, texts, structure)
    assert "\n" not in str(error.value)
    after = given.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_corpora(source: Path) -> None:
    loaded, _ = load_pretrained(source)
    refuse(loaded, source, [], "corpus is empty")
    refuse(loaded, source, ["", "\n"], "corpus is empty")
    refuse(loaded, source, ["   "], "it has no tokens")
    refuse(loaded, source, ["漢字 漢字"], "all its 4 tokens are unknown")
    refuse(loaded, source, "one text", "one string")
    refuse(loaded, source, [b"bytes"], "no text")
    refuse(loaded, source, 3, "cannot be read")


def test_structures(source: Path) -> None:
    loaded, _ = load_pretrained(source)
    refuse(loaded, source, CORPUS, "minimum=0", "vocabulary(minimum=0)")
    refuse(loaded, source, CORPUS, "has no option 'share'", "vocabulary(share=3)")
    refuse(loaded, source, CORPUS, "size=0", "vocabulary(size=0)")
    refuse(loaded, source, CORPUS, r"size=3: \d+ tokens have to stay", "vocabulary(size=3)")
    for granularity in ("vocabulary", se.Vocabulary(), ["head", "vocabulary(minimum=2)"]):
        with pytest.raises(UsageError, match=r"se\.cut_vocabulary"):
            se.prune(loaded, 0.5, granularity)


def test_tokenizers(source: Path, tmp_path: Path) -> None:
    loaded, _ = load_pretrained(source)
    other = folder(tmp_path / "other", "bpe", "GPT2LMHeadModel")
    refuse(loaded, other, CORPUS, "is this tokenizer the model's")
    refuse(loaded, object(), CORPUS, "give the model's folder")
    (source / "source.spm").write_bytes(b"")
    refuse(loaded, source, CORPUS, r"source\.spm")
    (source / "source.spm").unlink()
    lines = (source / "vocab.txt").read_text()
    (source / "vocab.txt").write_text(lines.replace("[MASK]", "[MUSK]"))
    with pytest.raises(InvalidFileError, match=r"vocab\.txt: token '\[MUSK\]'"):
        se.cut_vocabulary(loaded, source, CORPUS)
    (source / "tokenizer.json").write_text("{}")
    refuse(loaded, source, CORPUS, "is not a tokenizer")
    (source / "tokenizer.json").unlink()
    refuse(loaded, source, CORPUS, r"has no tokenizer\.json")


def test_damaged_files(source: Path) -> None:
    loaded, _ = load_pretrained(source)
    config = source / "tokenizer_config.json"
    plain = config.read_text()
    for added, match in (
        ('{"900": {"content": "[new]"}}', r"token '\[new\]' has another id"),
        ('{"x": {"content": "[PAD]"}}', "unexpected value"),
        ('{"0": 1}', "unexpected value"),
    ):
        config.write_text(plain.replace("{", f'{{"added_tokens_decoder": {added},', 1))
        refuse(loaded, source, CORPUS, match)
    config.write_text(plain)
    (source / "vocab.txt").write_bytes(b"\xff\n")
    refuse(loaded, source, CORPUS, r"vocab\.txt is not UTF-8")
    (source / "vocab.txt").unlink()
    path = source / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [7]
    path.write_text(json.dumps(tokenizer))
    refuse(loaded, source, CORPUS, "of the post-processor has another id")


def test_an_interrupt_changes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _ = load_pretrained(source)
    config, tables = loaded.config.to_dict(), dict(loaded.named_parameters())

    def interrupt(name: str) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparse_engine.vocabulary.rows.is_id", interrupt)
    with pytest.raises(KeyboardInterrupt):
        se.cut_vocabulary(loaded, source, CORPUS)
    assert loaded.config.to_dict() == config
    assert dict(loaded.named_parameters()).keys() == tables.keys()
    assert all(tables[name] is tensor for name, tensor in loaded.named_parameters())
    assert loaded.embeddings.word_embeddings.num_embeddings == config["vocab_size"]


def test_models(source: Path) -> None:
    refuse(nn.Linear(2, 2), source, CORPUS, "not a transformers model")
    loaded, _ = load_pretrained(source)
    se.cut_vocabulary(loaded, source, CORPUS)
    refuse(loaded, source, CORPUS, "is this tokenizer the model's")  # the files are the old ones
    loaded, _ = load_pretrained(source)
    loaded.config.quantization_config = {"bits": 4}
    refuse(loaded, source, CORPUS, "quantised already")
    sparse, _ = load_pretrained(source)
    sparse.config.vocab_size += 1
    refuse(sparse, source, CORPUS, "embeddings.word_embeddings.weight is")


def test_a_head_that_was_replaced(tmp_path: Path) -> None:
    source = folder(tmp_path / "model", "bpe", "LlamaForCausalLM")
    loaded, _ = load_pretrained(source)
    loaded.lm_head = nn.Identity()
    with pytest.raises(UsageError, match=r"lm_head\.weight is missing"):
        se.cut_vocabulary(loaded, source, CORPUS)


def test_two_vocabularies(source: Path) -> None:
    two = model("MarianMTModel", 300, 1)
    two.config.decoder_vocab_size = 100
    refuse(two, source, CORPUS, r"vocabularies of \[100, 300\] tokens")


def test_options_of_the_command(source: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    command = ("prune", source, tmp_path / "out", "--granularity", "vocabulary")
    assert "--calibration FILE" in refused(2, *command)
    given = (*command, "--calibration")
    assert "without a share" in refused(2, *given, f"{corpus}:0.5")
    for option, value in (("--sparsity", 0.5), ("--criterion", "obs"), ("--speedup", 2)):
        assert f"{option} has no effect" in refused(2, *given, corpus, option, value)
    assert not (tmp_path / "out").exists()
